"""The decoder in an environment of its own: what is said where it cannot serve, and that its frames are
PyAV's.

That environment is seldom there: tests that need it look for its Python in VPJAX_TFIO_PYTHON. The protocol is
tested in any case, with stand-ins for TensorFlow and tensorflow-io that decode by PyAV.
"""

import os
import stat
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.videos import greys, quarters, read, seen, write
from vpjax.data import tfio
from vpjax.types import UserError

STANDINS = Path(__file__).parent / "standins"
SIZE = 48, 64  # a width that tensorflow-io can take


@pytest.fixture(params=["tensorflow-io", "stand-in"])
def python(request, monkeypatch):
    """A Python whose worker decodes."""
    tfio._worker.cache_clear()
    if request.param == "stand-in":
        monkeypatch.setenv("PYTHONPATH", str(STANDINS))
        yield sys.executable
    elif (found := os.environ.get("VPJAX_TFIO_PYTHON")) is None:
        pytest.skip("VPJAX_TFIO_PYTHON names no Python with requirements-tfio.txt and FFmpeg 4")
    else:
        yield found
    tfio._worker.cache_clear()


CLIPS = {
    "h.264": dict(name="a.mp4"),
    "mpeg-4 with b-frames": dict(name="a.avi", codec="mpeg4", bf="2", b="4M"),
    "vp9": dict(name="a.webm", codec="libvpx-vp9"),
    "open groups": dict(name="a.mp4", **{"x264-params": "open-gop=1:bframes=3:keyint=12:scenecut=0"}),
}


@pytest.mark.parametrize("how", CLIPS.values(), ids=CLIPS)
def test_frames_are_those_of_pyav(python, tmp_path, how):
    """To the bit, with their times, wherever they are sampled."""
    how = dict(how)
    noise = np.random.default_rng(0).integers(0, 256, (40, *SIZE, 3), np.uint8)
    path = write(tmp_path / how.pop("name"), noise, **how)
    for sampling in (dict(frames=40), dict(frames=7), dict(fps=5.0, start=0.3, end=1.1), dict(fps=60.0)):
        ours = read(path, size=SIZE, tfio_python=python, **sampling)
        theirs = read(path, size=SIZE, **sampling)
        np.testing.assert_array_equal(ours.frames, theirs.frames)
        np.testing.assert_array_equal(ours.times, theirs.times)


def test_turned_frames_come_upright(python, tmp_path):
    turned = (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    path = write(tmp_path / "a.mp4", np.repeat(quarters(24, 32)[None], 4, axis=0), matrix=turned)
    ours, theirs = (read(path, frames=4, size=SIZE[::-1], tfio_python=p) for p in (python, ""))
    np.testing.assert_array_equal(ours.frames, theirs.frames)


def test_threads_share_a_worker(python, tmp_path):
    paths = [write(tmp_path / f"{n}.mp4", greys(8 + n, SIZE)) for n in range(6)]
    with ThreadPoolExecutor(6) as pool:
        videos = pool.map(lambda path: read(path, frames=4, size=SIZE, tfio_python=python), paths)
    assert [seen(video) for video in videos] == [seen(read(path, frames=4, size=SIZE)) for path in paths]
    assert tfio._worker.cache_info().currsize == 1


def test_files_that_it_cannot_take_are_named(python, tmp_path):
    path = write(tmp_path / "a.mp4", greys(4, (32, 56)))
    with pytest.raises(UserError, match="a.mp4: is 56 pixels wide; tensorflow-io needs a multiple of 16"):
        read(path, frames=4, tfio_python=python)
    path.write_text("no video")
    with pytest.raises(UserError, match="a.mp4: is "):
        read(path, frames=4, tfio_python=python)


def test_a_worker_that_died_is_replaced(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(STANDINS))
    tfio._worker.cache_clear()
    deadly, path = (write(tmp_path / name, greys(4, SIZE)) for name in ("deadly.mp4", "a.mp4"))
    with pytest.raises(UserError, match=r"the worker ended with code -6"):
        read(deadly, frames=4, size=SIZE, tfio_python=sys.executable)
    assert seen(read(path, frames=4, size=SIZE, tfio_python=sys.executable)) == [0, 1, 2, 3]


def test_what_is_missing_is_named(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="data.tfio_python=/nowhere/python: cannot be run"):
        tfio.Worker("/nowhere/python")
    with pytest.raises(UserError, match="No module named 'tensorflow'; pip install -r requirements-tfio.txt"):
        tfio.Worker(sys.executable)
    silent = tmp_path / "python"
    silent.write_text("#!/bin/sh\nexit 3\n")
    silent.chmod(silent.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(UserError, match="the worker ended with code 3"):
        tfio.Worker(str(silent))
