"""Decodes videos with tensorflow-io for ``vpjax.data.tfio``. This script is run by a Python of its own,
because tensorflow-io and a current JAX cannot share an environment, and imports nothing of vpjax.

Input and output are one JSON object a line. The first output is {"versions": TEXT} or {"missing": TEXT}. For
each input {"path": FILE, "frames": [numbers], "into": FILE} the frames are written to the file ``into`` as
bytes, and the output is {"count": frames of the video, "shape": [F, h, w, 3]}, or {"error": TEXT}.
"""

import ctypes
import json
import os
import sys

FFMPEG = "libavformat.so.58"  # of FFmpeg 4, the newest that tensorflow-io 0.37 looks for


def send(message, out):
    out.write(json.dumps(message) + "\n")
    out.flush()


def load_decoder():
    """The decoding function and the versions in words. RuntimeError naming what is missing."""
    try:
        import tensorflow
        import tensorflow_io
    except Exception as error:  # mismatched versions raise all kinds of errors
        raise RuntimeError(
            f"{type(error).__name__}: {error}; pip install -r requirements-tfio.txt"
        ) from error
    try:
        decode_video = tensorflow_io.experimental.ffmpeg.decode_video
    except Exception as error:
        try:
            ctypes.CDLL(FFMPEG)
        except OSError as missing:
            raise RuntimeError(f"FFmpeg 4 is not on LD_LIBRARY_PATH ({missing})") from error
        raise RuntimeError(
            f"tensorflow-io {tensorflow_io.__version__} does not load with tensorflow "
            f"{tensorflow.__version__} ({error}); pip install -r requirements-tfio.txt"
        ) from error
    versions = f"tensorflow-io {tensorflow_io.__version__}, tensorflow {tensorflow.__version__}"
    return lambda path: decode_video(tensorflow.io.read_file(path), 0).numpy(), versions


def main():
    del sys.path[0]  # this folder, whose modules TensorFlow must not import
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the protocol
    try:
        decode, versions = load_decoder()
    except RuntimeError as error:
        send({"missing": str(error)}, out)
        return
    send({"versions": versions}, out)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            frames = decode(request["path"])
            numbers = [number for number in request["frames"] if number < len(frames)]
            frames[numbers].tofile(request["into"])
        except Exception as error:  # of TensorFlow, for files that it cannot read
            send({"error": " ".join(str(error).split())}, out)
        else:
            send({"count": len(frames), "shape": [len(numbers), *frames.shape[1:]]}, out)


if __name__ == "__main__":
    main()
