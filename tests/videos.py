"""Small video files, written by the tests themselves.

Frame i of ``greys`` is grey of level 8 * i, which survives compression to within 3 levels, so that a decoded
frame can be recognised.
"""

import fractions

import av
import numpy as np

from vpjax.data.sampling import Sampling
from vpjax.data.video import read_frames

STEP = 8
SIZE = (32, 48)

OPEN_GROUPS = "open-gop=1:bframes=3:b-adapt=0:scenecut=0:keyint=12:min-keyint=12"
FORMATS = {
    "mp4": dict(name="a.mp4"),
    "mp4 in fragments": dict(name="a.mp4", muxer={"movflags": "frag_keyframe+empty_moov"}),
    "matroska": dict(name="a.mkv"),
    "webm": dict(name="a.webm", codec="libvpx-vp9"),
    "transport stream": dict(name="a.ts"),
    "avi": dict(name="a.avi", codec="mpeg4", bf="2", b="4M"),
    "avi without b-frames": dict(name="a.avi", codec="mpeg4", bf="0", b="4M"),
    "avi with h.264": dict(name="a.avi"),
    "open groups": dict(name="a.mp4", **{"x264-params": OPEN_GROUPS}),
    "bare h.264": dict(name="a.h264"),
}


def greys(count, size=SIZE):
    levels = (np.arange(count) * STEP % 256).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, *size, 3))


def write(
    path,
    frames,
    pts=None,
    *,
    rate=25,
    tick=None,
    codec="libx264",
    matrix=None,
    aspect=None,
    muxer=(),
    **options,
):
    """Encode frames u8[F,h,w,3], shown at ``pts`` in ticks (None: at ``rate``), of pixels of this aspect."""
    with av.open(str(path), "w", options=dict(muxer)) as file:
        stream = file.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.gop_size = 12
        if tick is not None:
            stream.time_base = stream.codec_context.time_base = tick
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if matrix is not None:
            stream.set_display_matrix(matrix)
        for place, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels))
            frame.pts = place if pts is None else pts[place]
            frame.time_base = tick or fractions.Fraction(1, rate)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def write_sound(path, codec="mp2", sample="s16"):
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=48000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.int16), format=sample, layout="mono")
        sound.rate = 48000
        file.mux(stream.encode(sound))
        file.mux(stream.encode())
    return path


def noisy(count):
    return np.random.default_rng(0).integers(0, 256, (count, 64, 96, 3), np.uint8)


def quarters(height, width):
    """An image whose four quarters differ."""
    return np.kron([[40, 90], [140, 220]], np.ones((height, width)))[..., None].repeat(3, -1).astype(np.uint8)


def frame_numbers(video):
    """The numbers of these frames of ``greys``."""
    level = video.frames.mean((1, 2, 3)) / STEP
    assert np.abs(level - level.round()).max() < 0.4, "a frame is none of those that were written"
    return level.round().astype(int).tolist()


def read(path, *, size=SIZE, start=None, end=None, tfio_python="", **sampling):
    options = dict(size=size, start=start, end=end, tfio_python=tfio_python)
    return read_frames(path, Sampling(**sampling), **options)
