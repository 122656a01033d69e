"""Decodes videos with tensorflow-io, as ``vpjax.data.tfio`` asks it to: run by a Python of its own, for
tensorflow-io and a current JAX share no environment. Nothing of vpjax is imported here.

A JSON object a line, in and out. First, unasked, {"versions": TEXT} or {"missing": TEXT}; then for each
{"path": FILE, "frames": [places], "into": FILE} either {"count": frames of the video, "shape": [F, h, w, 3]},
the asked frames as bytes being in the file ``into``, or {"error": TEXT}.
"""

import ctypes
import json
import os
import sys

FFMPEG = "libavformat.so.58"  # of FFmpeg 4, the newest that tensorflow-io 0.37 looks for


def answer(message, out):
    out.write(json.dumps(message) + "\n")
    out.flush()


def load():
    """(decode, versions); RuntimeError that says what is missing."""
    try:
        import tensorflow
        import tensorflow_io
    except Exception as error:  # a mismatch of versions raises whatever it runs into
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
    del sys.path[0]  # this folder: its names are none of TensorFlow's
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is none of the protocol
    try:
        decode, versions = load()
    except RuntimeError as error:
        answer({"missing": str(error)}, out)
        return
    answer({"versions": versions}, out)
    for line in sys.stdin:
        wanted = json.loads(line)
        try:
            frames = decode(wanted["path"])
            places = [place for place in wanted["frames"] if place < len(frames)]
            frames[places].tofile(wanted["into"])
        except Exception as error:  # TensorFlow's, of files that it cannot read
            answer({"error": " ".join(str(error).split())}, out)
        else:
            answer({"count": len(frames), "shape": [len(places), *frames.shape[1:]]}, out)


if __name__ == "__main__":
    main()
