"""The decoder in an environment of its own: errors if it cannot serve, and frames equal to PyAV's.

Tests that need that environment find its Python in VPJAX_TFIO_PYTHON, and are skipped without it. The
protocol is tested in any case, with stand-ins for TensorFlow and tensorflow-io that decode by PyAV.
"""

import os
import stat
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.videos import frame_numbers, greys, quarters, read, write
from vpjax.data import tfio
from vpjax.types import UserError

STANDINS = Path(__file__).parent / "standins"
SIZE = 48, 64  # a width that tensorflow-io can take


@pytest.fixture(scope="module", params=["tensorflow-io", "stand-in"])
def python(request):
    """A Python whose worker decodes; one worker serves all tests."""
    tfio._worker.cache_clear()
    if request.param == "stand-in":
        with pytest.MonkeyPatch.context() as monkeypatch:
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
    "vp9": dict(name="a.webm", codec="libvpx-vp9", deadline="realtime", **{"cpu-used": "8"}),
    "open groups": dict(name="a.mp4", **{"x264-params": "open-gop=1:bframes=3:keyint=12:scenecut=0"}),
}


@pytest.mark.parametrize("options", CLIPS.values(), ids=CLIPS)
def test_frames_are_those_of_pyav(python, tmp_path, options):
    """To the bit, with their times, wherever they are sampled."""
    options = dict(options)
    noise = np.random.default_rng(0).integers(0, 256, (40, *SIZE, 3), np.uint8)
    path = write(tmp_path / options.pop("name"), noise, **options)
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
    assert [frame_numbers(video) for video in videos] == [
        frame_numbers(read(path, frames=4, size=SIZE)) for path in paths
    ]
    assert tfio._worker.cache_info().currsize == 1


def test_unusable_files_are_named(python, tmp_path):
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
    assert frame_numbers(read(path, frames=4, size=SIZE, tfio_python=sys.executable)) == [0, 1, 2, 3]


def test_a_missing_part_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with pytest.raises(UserError, match="data.tfio_python=/nowhere/python: cannot be run"):
        tfio.Worker("/nowhere/python")
    with pytest.raises(UserError, match="No module named 'tensorflow'; pip install -r requirements-tfio.txt"):
        tfio.Worker(sys.executable)
    silent = tmp_path / "python"
    silent.write_text("#!/bin/sh\nexit 3\n")
    silent.chmod(silent.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(UserError, match="the worker ended with code 3"):
        tfio.Worker(str(silent))
