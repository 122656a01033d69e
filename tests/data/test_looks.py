"""``looks``: windows of a scan and of training, and clips that show a file several times."""

import dataclasses
import json

import numpy as np
import pytest

from tests.data.test_index import data_of
from tests.videos import greys, write
from tests.words import stub_config, word_text
from vpjax.data.clips import parse_clip
from vpjax.data.looks import (
    KINDS,
    NO,
    YES,
    TwoLooks,
    event_frames,
    prompts_a_clip,
    right_window,
    rollout_windows,
    scan_of,
    training_windows,
    window_of,
    wrong_window,
)
from vpjax.data.pipeline import make_batch_maker
from vpjax.data.sampling import Sampling, VideoInfo, fit, looked_at, readings_of
from vpjax.data.video import read_frames
from vpjax.recipes import base
from vpjax.scoring.judge import overlap_of
from vpjax.types import Clip, Keyword, Look, Turn, UserError

INFO = VideoInfo(width=56, height=56, duration=128.0, fps=8.0, frames=1024)
SAMPLING = Sampling(16, min_pixels=28 * 28, max_pixels=56 * 56)


def tokens_of(look, info=INFO):
    own, part = looked_at(look, SAMPLING)
    frames, height, width = fit(own, info, part, factor=28)
    return frames // 2 * height * width // 28**2


@pytest.mark.parametrize("tokens", [40, 100, 512, 1024, 5000])
@pytest.mark.parametrize("frames", [200, 1024, 4801])
def test_a_scan_covers_a_file_within_its_tokens(tokens, frames):
    info = dataclasses.replace(INFO, frames=frames, duration=frames / 8)
    looks = TwoLooks(tokens=tokens)
    windows = scan_of(info, looks, SAMPLING, 28)
    edges = [windows[0][0], *(end for _, end in windows)]
    assert edges[0] == 0 and edges[-1] == info.duration
    assert [start for start, _ in windows[1:]] == edges[1:-1]
    assert np.allclose(np.diff(edges), info.duration / len(windows))
    used = sum(tokens_of(looks.first(window), info) for window in windows)
    used += max(tokens_of(looks.second(window), info) for window in windows)
    assert used <= tokens
    # Another window would be beyond the tokens, or have fewer frames than are read of it.
    assert used + tokens_of(looks.first(windows[0]), info) > tokens or frames < 16 * (len(windows) + 1)


def test_too_few_tokens_are_refused():
    with pytest.raises(UserError, match="39 visual tokens"):
        scan_of(INFO, TwoLooks(tokens=39), SAMPLING, 28)


def timed(*spans, **part):
    return Clip("a", "a.mp4", "What?", "It spins.", spans=spans, **part)


def test_training_windows_show_the_whole_event_or_nothing_of_it():
    rng = np.random.default_rng(0)
    options = dict(seconds=(2.0, 6.0), rng=rng)
    clip = timed((63.5, 63.625), (80.0, 80.5))
    firsts = []
    for _ in range(300):
        start, end = window_of(clip, INFO, is_right=True, **options)
        assert any(start <= a and b <= end for a, b in clip.spans) and 2.0 <= end - start <= 6.0
        firsts.append(start)
        start, end = window_of(clip, INFO, is_right=False, **options)
        assert all(end <= a or b <= start for a, b in clip.spans) and 0 <= start < end <= INFO.duration
    assert len(set(firsts)) > 50  # the event stands anywhere in its window
    short, clip = dataclasses.replace(INFO, frames=16, duration=2.0), timed((1.0, 1.125))
    assert window_of(clip, short, is_right=True, **options) == (0.0, 2.0)
    assert window_of(clip, short, is_right=False, **options) is None
    # Annotations that end after the file, begin before it, and begin where it ends.
    start, end = window_of(timed((127.0, 131.0)), INFO, is_right=True, **options)
    assert start <= 127.0 and end == INFO.duration
    assert window_of(timed((-0.1, 1.5)), INFO, is_right=True, **options)[0] == 0
    for outside in ((128.0, 128.0), (130.0, 131.0), (-2.0, -1.0)):
        assert window_of(timed(outside), INFO, is_right=True, **options) is None
    assert window_of(timed((10.0, 17.0)), INFO, is_right=True, **options) is None


def test_a_single_moment_is_an_event():
    """Of an annotation that gives a time and no length, as for the frame at which it is on screen."""
    rng, clip = np.random.default_rng(0), timed((63.5, 63.5))
    for _ in range(50):
        right = window_of(clip, INFO, (2.0, 6.0), is_right=True, rng=rng)
        assert right[0] <= 63.5 < right[1]
        wrong = window_of(clip, INFO, (2.0, 6.0), is_right=False, rng=rng)
        assert wrong[1] <= 63.5 or wrong[0] > 63.5
        for window, shows in ((right, True), (wrong, False)):
            look = Look(*window, frames=16)
            assert (overlap_of(dataclasses.replace(clip, looks=(look,))) > 0) == shows


def test_a_window_does_not_show_what_begins_as_it_ends():
    """At 30 frames a second times are no round numbers, and annotations round them."""
    info = dataclasses.replace(INFO, fps=30.0, frames=120, duration=4.0)
    clip = timed((1.0333333, 1.2))
    before = Look(0.0, 31 / 30)
    assert clip.spans[0][0] < before.end
    assert overlap_of(dataclasses.replace(clip, looks=(before,))) == 0
    assert event_frames(clip.spans[0], info) == (31, 36)


def test_windows_of_a_part_of_a_file_stay_in_it():
    """What happens in the rest of the file is another clip's."""
    rng, clip = np.random.default_rng(0), timed((63.5, 63.6), start=60.0, end=69.97)
    for _ in range(50):
        for is_right in (True, False):
            start, end = window_of(clip, INFO, (2.0, 6.0), is_right=is_right, rng=rng)
            assert 60.0 <= start < end <= 69.97
    assert window_of(timed((63.5, 63.6), start=64.0), INFO, (2.0, 6.0), is_right=True, rng=rng) is None
    assert window_of(timed((63.5, 63.6), start=130.0), INFO, (2.0, 6.0), is_right=False, rng=rng) is None
    windows = scan_of(INFO, TwoLooks(), SAMPLING, 28, (60.0, 76.0))
    assert windows[0][0] == 60.0 and windows[-1][1] == 76.0 and len(windows) == 16 * 8 // 16
    with pytest.raises(ValueError, match="not inside"):
        scan_of(INFO, TwoLooks(), SAMPLING, 28, (130.0, None))


def test_each_look_at_a_window_has_its_own_clip_and_truth():
    clip = Clip("a", "a.mp4", "What?", "It spins.", spans=((1.0, 1.1),), degraded_answer="Nothing.")
    looks, part = TwoLooks(), (0.0, 2.0)
    first, second = (looks.first(part),), (looks.second(part),)
    right = right_window(clip, looks, part, "a/0", closer=True)
    said = {(x.answer, x.looks): x for x in right}
    assert set(said) == {("It spins.", first), ("It spins.", second), (YES, first), (YES, second)}
    assert len({x.id for x in right}) == 4 and all(x.id.startswith("a/0/") for x in right)
    wrong = wrong_window(clip, looks, part, "a/1", closer=True)
    assert {(x.answer, x.looks) for x in wrong} == {
        (answer, look) for answer in (NO, "Nothing.") for look in (first, second)
    }
    assert len({x.id for x in wrong}) == 4
    assert not any(x.spans or x.keywords for x in wrong)
    unknown = dataclasses.replace(clip, degraded_answer="")
    assert [x.answer for x in wrong_window(unknown, looks, part, "a/1", closer=True)] == [NO, NO]
    assert [x.looks for x in wrong_window(clip, looks, part, "a/1", closer=False)] == [first]
    assert len(right_window(clip, looks, part, "a/1", closer=False)) == 3


def test_looks_are_read_and_written_and_come_before_what_data_says():
    looks = (Look(frames=512, pixels=28 * 28, pick="change"), Look(63.0, 65.0, frames=16))
    turns = (Turn("<video> When?", "<glue>[(63.0, 65.0)]</glue>"),)
    clip = Clip("a", "a.mp4", "<video> What?", "It spins.", turns=turns, others=("a.mp4",), looks=looks)
    record = json.loads(json.dumps(clip.record()))
    assert parse_clip(record) == clip
    assert "looks" not in dataclasses.replace(clip, looks=()).record()
    scan, window = readings_of(clip, SAMPLING, 2)
    assert (scan.sampling.frames, scan.sampling.max_pixels, scan.sampling.pick) == (512, 28 * 28, "change")
    assert scan.part == (None, None) and window == (SAMPLING, (63.0, 65.0))
    assert clip.until(0).looks == looks[:1]
    for wrong, said in (
        (dict(looks=[{}]), "1 looks at 2 videos"),
        (dict(looks=[dict(frames=-1), {}]), "'frames'"),
        (dict(looks=[dict(pick="best"), {}]), "'pick'"),
        (dict(looks=[dict(start=3, end=2), {}]), "no length"),
        (dict(looks=[dict(width=3), {}]), "not an object with some of"),
    ):
        with pytest.raises(ValueError, match=said):
            parse_clip(record | wrong)


def test_a_dialogue_shows_a_file_in_two_looks(tmp_path):
    """First all of it in few pixels, then a part: each as it is read by itself, in its own turn."""
    frames = greys(40, (112, 112)).copy()
    frames[21, 28:56, 28:56] = 255  # in no frame that is chosen by its time
    path = str(write(tmp_path / "a.mp4", frames, rate=8, crf="10"))
    looks = (Look(frames=10, pixels=28 * 28, pick="change"), Look(2.0, 4.0, frames=16, pixels=56 * 56))
    turns = (Turn("<video> When?", "From 2 to 4 seconds."),)
    keyword = Keyword("flashes", "flash", ((2.625, 2.75),), video=1)
    clip = Clip(
        "a", path, "<video> What?", "It flashes.", (keyword,), turns=turns, others=(path,), looks=looks
    )
    text = word_text()
    config = stub_config(text)
    data = data_of(frames=4, fps=0.0, min_pixels=28 * 28, cache=str(tmp_path / "cache"))
    maker, index = make_batch_maker([clip], text, config, data, packed=True, seed=0, batch_size=1)
    (entry,) = index.entries
    assert not index.rejected and entry.shapes == ((10, 28, 28), (16, 56, 56))
    for _ in range(2):  # decoded, and from the cache
        scan, window = maker.videos(entry)[0]
        sampling = Sampling.of(data)
        for video, look in ((scan, looks[0]), (window, looks[1])):
            own, (start, end) = looked_at(look, sampling)
            alone = read_frames(path, own, start=start, end=end)
            assert np.array_equal(video.frames, alone.frames) and np.array_equal(video.times, alone.times)
        assert 21 / 8 in scan.times and np.array_equal(window.times, np.arange(16, 32) / 8)
    # Merged frames are read as such: which they are is known only after a first pass.
    merged = read_frames(path, dataclasses.replace(sampling, frames=10, max_pixels=28 * 28, pick="merge"))
    every = read_frames(path, Sampling(40, min_pixels=28 * 28, max_pixels=28 * 28))
    assert 21 / 8 in merged.times
    assert np.array_equal(merged.frames, every.frames[np.isin(every.times, merged.times)])
    row = maker.row(entry, 0)
    assert row.counts == (5, 8) and np.flatnonzero(row.slots[0]).tolist() == [5 + 2]
    assert row.prompt.slot.max() + 1 == 13 and (row.prompt.slot >= 0).sum() == 5 * 1 + 8 * 4


def test_clips_whose_event_fits_no_window_are_named(tmp_path):
    """In SFT those without a time, or with a look of their own, are asked as they are; in GRPO they have no
    windows either."""
    path = str(write(tmp_path / "a.mp4", greys(80, (56, 56)), rate=8))
    clips = [
        Clip("brief", path, "What?", "It flashes.", spans=((3.0, 3.5),)),
        Clip("long", path, "What?", "It drifts.", spans=((1.0, 9.0),)),
        Clip("no time", path, "What?", "It is red."),
        Clip("own look", path, "What?", "It flashes.", spans=((3.0, 3.5),), looks=(Look(2.0, 4.0),)),
    ]
    looks = base.get_config().looks
    looks.windows, looks.wrong, looks.seconds = 2, 1, (2.0, 6.0)
    found, left_out = training_windows(clips, looks, data_of(cache=str(tmp_path / "cache")), seed=0)
    assert left_out == ["long"]
    assert {clip.id.partition("/")[0] for clip in found} == {"brief", "no time", "own look"}
    assert found[-2:] == [clips[2], clips[3]]
    assert rollout_windows(clips, looks, data_of(cache=str(tmp_path / "cache")), seed=0)[1] == [
        "long",
        "no time",
        "own look",
    ]


def test_a_step_of_grpo_holds_all_prompts_of_its_clips(tmp_path):
    """In the order of KINDS, windows with the event first; whichever process makes which rows. Clips without
    room for both kinds of windows are named."""
    words = dict(
        question="What?", answer="It flashes.", keywords=(Keyword("flashes", "flash", ((3.0, 3.5),)),)
    )
    clips = []
    for number, seconds in enumerate((10, 8, 2, 9)):
        path = str(write(tmp_path / f"{number}.mp4", greys(8 * seconds, (56, 56)), rate=8))
        clips.append(Clip(f"c{number}", path, spans=((3.0, 3.5) if seconds > 2 else (1.0, 1.5),), **words))
    looks = base.get_config().looks
    looks.windows, looks.wrong, looks.frames = 2, 1, 4
    text = word_text()
    data = data_of(frames=4, fps=0.0, min_pixels=28 * 28, cache=str(tmp_path / "cache"))
    prompts, left_out = rollout_windows(clips, looks, data, seed=0)
    each = prompts_a_clip(looks)
    assert each == 9 and left_out == ["c2"] and len(prompts) == 3 * each
    for number, prompt in enumerate(prompts):
        block, place = divmod(number, each)
        window, kind = divmod(place, 3)
        (look,) = prompt.looks
        assert prompt.id == f"{('c0', 'c1', 'c3')[block]}/{window}/{KINDS[kind]}"
        assert look.pixels == (looks.pixels if KINDS[kind] == "second" else looks.scan_pixels)
        assert ("yes or no" in prompt.question) == (KINDS[kind] == "relevance")
        shows = look.start <= 3.0 and 3.5 <= look.end
        assert shows == (window < 2) and (shows or look.end <= 3.0 or 3.5 <= look.start)
        assert prompt.looks[0].start == prompts[number - kind].looks[0].start
        if kind:
            assert prompt.spans and [bool(keyword.spans) for keyword in prompt.keywords] == [shows]
            assert (overlap_of(prompt) > 0) == shows
    options = dict(packed=False, seed=0, batch_size=2 * each, together=each)
    maker, index = make_batch_maker(prompts, text, stub_config(text), data, **options)
    assert not index.rejected and maker.plan.steps_per_epoch == 2
    seen = []
    for step in range(2):
        whole = maker(step).batch
        parts = [
            dataclasses.replace(maker, part=range(*ends))(step).batch for ends in ((0, each), (each, 18))
        ]
        np.testing.assert_array_equal(np.concatenate([part.clip for part in parts]), whole.clip)
        for block in whole.clip.reshape(2, each):
            if block[0] >= 0:
                assert block.tolist() == list(range(block[0], block[0] + each)) and block[0] % each == 0
                seen.append(int(block[0]))
            else:
                assert (block == -1).all()
    assert sorted(seen) == [0, each, 2 * each]
