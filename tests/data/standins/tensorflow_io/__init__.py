"""Stands in for tensorflow-io in ``tests/data/test_tfio.py``: decodes by PyAV, and dies of files named so."""

import os
from types import SimpleNamespace

import av
import numpy as np

__version__ = "0.37.1"


def decode_video(path, index):
    print("noise that is none of the protocol")
    if "deadly" in path:
        os.abort()
    with av.open(path) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=index)]
    return SimpleNamespace(numpy=lambda: np.stack(frames))


experimental = SimpleNamespace(ffmpeg=SimpleNamespace(decode_video=decode_video))
