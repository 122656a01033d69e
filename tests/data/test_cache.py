"""The cache of decoded frames: entries are whole or absent, and its limit is kept."""

import os

import numpy as np
import pytest

from vpjax.data.cache import DamagedPage, FrameCache
from vpjax.data.video import Video


def entry(value):
    return Video(np.full((4, 14, 18, 3), value, np.uint8), np.arange(4.0), 0.125, 1.5)


def test_cache_keeps_within_its_limit_what_was_used_last(tmp_path):
    cache = FrameCache(tmp_path, 20_000)  # six entries of about 3.1 kB
    for i in range(5):
        cache.put(cache.key(i), entry(i))
        os.utime(cache.path(cache.key(i)), ns=(i, i))
    cache.get(cache.key(0))
    for i in range(5, 9):
        cache.put(cache.key(i), entry(i))
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.frames")) <= 20_000
    kept = {i for i in range(9) if cache.get(cache.key(i)) is not None}
    assert {0, 8} <= kept and not {1, 2} & kept
    video = cache.get(cache.key(8))
    np.testing.assert_array_equal(video.frames, entry(8).frames)
    assert video.times.tolist() == [0, 1, 2, 3] and (video.frame_seconds, video.interval) == (0.125, 1.5)


def test_cache_counts_what_others_wrote(tmp_path):
    ours, theirs = FrameCache(tmp_path, 20_000), FrameCache(tmp_path, 20_000)
    for i in range(20):
        (ours if i % 2 else theirs).put(ours.key(i), entry(i))
        assert sum(file.stat().st_size for file in tmp_path.rglob("*.frames")) <= 20_000


def test_cache_of_nothing_and_of_a_broken_entry(tmp_path):
    FrameCache(tmp_path / "none", 0).put("ab", entry(1))
    assert not (tmp_path / "none").exists()
    cache = FrameCache(tmp_path, 20_000)
    cache.put("ab", entry(1))
    whole = cache.path("ab").read_bytes()
    harms = [whole[:length] for length in (0, 4, 8, 50, 1500, len(whole) - 8)]
    harms += [bytes(len(whole)), whole + b"\0"]
    harms.append(whole[:16] + whole[24:32] + whole[16:24] + whole[32:])  # height and width swapped
    for place in (0, 8, 20, 40, len(whole) // 2, len(whole) - 1):  # a flipped bit
        harms.append(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    for harm in harms:
        assert harm != whole
        cache.path("ab").write_bytes(harm)
        with pytest.raises(DamagedPage):
            cache.get("ab")
        assert not cache.path("ab").exists() and cache.get("ab") is None
    cache.path("ab").write_bytes(whole)
    np.testing.assert_array_equal(cache.get("ab").frames, entry(1).frames)


def test_cache_removes_what_a_killed_process_left(tmp_path):
    cache = FrameCache(tmp_path, 20_000)
    left = cache.path("ab").with_suffix(".unfinished")
    left.parent.mkdir()
    left.write_bytes(bytes(19_000))
    os.utime(left, ns=(1, 1))
    cache.put("ab", entry(1))
    assert not left.exists() and cache.get("ab") is not None
