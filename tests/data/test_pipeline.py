"""Batches of clips: what each row holds, resuming, processes, workers, faults, caches and mixtures."""

import dataclasses
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import ExifTags, Image

from tests import unpacked
from tests.videos import write
from tests.words import stub_config, word_text
from vpjax.data.cache import FrameCache
from vpjax.data.pipeline import DAMAGED_PAGE, Loader, make_batch_maker
from vpjax.recipes import base
from vpjax.types import Clip, Keyword, UserError

QUESTION = "What happens?"
ANSWER = "A red square flashes."
BOTH = pytest.mark.parametrize("packed", [True, False], ids=["packed", "prompts"])


def write_video(path, greys, width=56):
    """Stills of these levels of grey, which survive compression to within 2."""
    frames = np.broadcast_to(np.uint8(greys)[:, None, None, None], (len(greys), 56, width, 3))
    return str(write(path, frames, rate=8, crf="10", bf="0"))


def level(number):
    """The grey of a file, by which a clip is recognised; its last frame is brighter."""
    return 40 + 10 * number


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Ten files: 0-6 square, 7-8 wide, 9 square but of only 6 frames."""
    folder = tmp_path_factory.mktemp("videos")
    for i in range(10):
        stills = [level(i)] * (5 if i == 9 else 15) + [level(i) + 40]
        write_video(folder / f"{i}.mp4", stills, width=84 if i in (7, 8) else 56)
    return folder


@pytest.fixture(scope="module")
def text():
    return word_text()


@pytest.fixture
def clips(videos):
    """One clip of each file; its event is the last frame."""

    def clip(i):
        end = 6 / 8 if i == 9 else 16 / 8
        flash = Keyword("flashes", "flash", ((end - 1 / 8, end),))
        return Clip(f"c{i}", str(videos / f"{i}.mp4"), QUESTION, ANSWER, (flash,))

    return [clip(i) for i in range(10)]


@pytest.fixture
def load(text, tmp_path):
    """A function that makes a Loader with small defaults, of rows of about three clips, and closes it after
    the test."""
    loaders = []
    config = stub_config(text)
    small = dict(min_pixels=28 * 28, max_pixels=84 * 56, length_multiple=8, max_tokens=100, row_tokens=160)
    small |= dict(max_answer=40, keywords=2, keyword_tokens=3, max_fault_share=0.0)

    def make(
        clips, *, packed=True, seed=3, batch_size=2, start_step=0, processes=(0, 1), sets=None, **fields
    ):
        data_config = base.get_config().data
        data_config.update(dict(cache=str(tmp_path / "cache")) | small | fields)
        place = dict(process_index=processes[0], process_count=processes[1], packed=packed)
        if sets is not None:
            place |= dict(data_set_of=sets[0], weights=sets[1])
        maker, index = make_batch_maker(
            clips, text, config, data_config, seed=seed, batch_size=batch_size, **place
        )
        loader = Loader(maker, index, start_step)
        loaders.append(loader)
        return loader

    yield make
    for loader in loaders:
        loader.close()


def take(loader, count):
    return [next(loader) for _ in range(count)]


def epoch(loader):
    """What the first rows say of their clips, until each clip that can be used has come: {number: part}."""
    out = {}
    while len(out) < len(loader.index.entries) - len(loader.faults):
        for number, part in unpacked.clips_of(next(loader)).items():
            out.setdefault(number, part)
    return out


def grey(part):
    """The mean level of a clip's first slot."""
    return part["pixels"][part["slot"] == 0].mean()


def slots_in(part):
    return part["slot"].max() + 1


def assert_equal(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_every_clip_comes_once_an_epoch_with_its_own_pixels(load, clips):
    """Square, wide and short ones share rows, and no row is empty."""
    loader = load(clips)
    rows = [[n for n in row if n >= 0] for batch in take(loader, 20) for row in batch.clip.tolist()]
    per_epoch = len(loader.plan.epochs[0])
    assert per_epoch < 5  # ten clips
    starts = np.cumsum([0] + [len(loader.plan.epochs[e]) for e in range(5)])
    orders = [[n for row in rows[a:b] for n in row] for a, b in zip(starts, starts[1:], strict=False)]
    assert all(sorted(order) == list(range(10)) for order in orders) and all(rows)
    assert len({str(order) for order in orders}) == 5  # shuffled anew each time

    for i, part in epoch(load(clips)).items():
        assert abs(grey(part) - level(i)) <= 2
        assert slots_in(part) == (3 if i == 9 else 8)
        assert part["key_slots"].sum() == 1 and part["key_slots"][0, -1] and part["has_degraded"][0]
        # V~ shows the slot before in place of the last, which is the brighter one.
        last = part["degraded_pixels"][part["degraded_slot"] == slots_in(part) - 1]
        assert (
            abs(last.mean() - level(i))
            <= 2
            < part["pixels"][part["slot"] == slots_in(part) - 1].mean() - level(i)
        )


def test_prompts_have_a_row_each(load, clips):
    loader = load(clips, packed=False, batch_size=4)
    batches = take(loader, loader.plan.steps_per_epoch)
    assert len(batches) == 3 and loader.usage.programs <= 2
    numbers = [n for batch in batches for n in batch.clip.tolist()]
    assert sorted(numbers) == [-1, -1, *range(10)]
    for batch in batches:
        unpacked.check_units(batch.video)
        for r, i in enumerate(batch.clip):
            length = int((batch.text.segment[r] > 0).sum())
            seen = unpacked.seen(batch.video, r, batch.text, np.arange(length), 0)
            if i >= 0:
                assert abs(grey(seen) - level(i)) <= 2 and batch.has_degraded[r] and batch.hidden[r, 0]
            else:
                assert length == 0 and not batch.has_degraded[r]


def test_images_texts_and_videos_share_a_batch(load, text, clips, tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # shown a quarter turn to the right
    Image.new("RGB", (56, 28), (200, 0, 0)).save(tmp_path / "a.jpg", exif=exif, quality=95)
    mixed = [clips[0], Clip("i", str(tmp_path / "a.jpg"), QUESTION, ANSWER), Clip("t", "", QUESTION, ANSWER)]
    loader = load(mixed, batch_size=1)
    (row,) = next(loader).clip.tolist()
    assert sorted(row) == [0, 1, 2]
    video, image, plain = (part for _, part in sorted(epoch(load(mixed, batch_size=1)).items()))
    assert slots_in(video) == 8 and slots_in(image) == 1 and slots_in(plain) == 0
    assert (image["tokens"] == text.image_pad).sum() == 2  # upright: 2 rows, 1 column
    assert image["grid"][image["slot"] == 0].tolist() == [[2, 1]] * 2
    red = image["pixels"][image["slot"] == 0].reshape(2, 4, 3, -1)[:, :, 0]
    assert abs(red.mean() - 200) <= 3
    for part in (video, image, plain):
        answer = part["tokens"][part["target"]].tolist()
        assert text.tokenizer.decode(answer) == ANSWER + "<|im_end|>"


@BOTH
def test_a_seed_fixes_the_order(load, clips, packed):
    ours, same, other = (take(load(clips, seed=seed, packed=packed), 4) for seed in (1, 1, 2))
    for a, b in zip(ours, same, strict=True):
        assert_equal(a, b)
    assert [b.clip.tolist() for b in ours] != [b.clip.tolist() for b in other]


@BOTH
@pytest.mark.parametrize("replacement", ["key", "random"])
def test_a_loader_started_at_any_step_goes_on_bitwise(load, clips, replacement, packed):
    options = dict(replacement=replacement, packed=packed)
    whole = take(load(clips, **options), 8)
    for start in (1, 3, 5):
        loader = load(clips, **options, start_step=start)
        for batch in whole[start:]:
            assert_equal(next(loader), batch)
        assert loader.step == 8


@BOTH
def test_two_processes_yield_the_rows_of_one(load, clips, packed):
    one = take(load(clips, packed=packed), 4)
    halves = [take(load(clips, packed=packed, processes=(p, 2)), 4) for p in range(2)]
    for whole, *parts in zip(one, *halves, strict=True):
        assert_equal(whole, jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts))


def test_random_slots_are_others_in_each_epoch(load, clips):
    loader = load(clips[:7], packed=False, batch_size=7, replacement="random")
    shown = {clip: set() for clip in range(7)}
    for batch in take(loader, 4):
        for clip, shows in zip(batch.clip, batch.shows_degraded, strict=True):
            shown[int(clip)].add(shows.tobytes())
    assert sum(len(videos) > 1 for videos in shown.values()) >= 5


def test_a_mixture_of_data_sets_keeps_their_weights_and_names(load, clips):
    """Clips 0 to 4 are of one data set, twice an epoch; of the others, each second one comes."""
    loader = load(clips, sets=([0] * 5 + [1] * 5, (2.0, 0.4)), batch_size=3)
    times = [np.zeros(10, int) for _ in range(3)]
    starts = np.cumsum([0] + [len(loader.plan.epochs[e]) for e in range(3)])
    batches = take(loader, -(-int(starts[-1]) // 3))
    for number, row in enumerate(row for batch in batches for row in batch.clip):
        if number < starts[-1]:
            np.add.at(times[np.searchsorted(starts, number, "right") - 1], row[row >= 0], 1)
    for counts in times:
        assert (counts[:5] == 2).all() and counts[5:].sum() == 2 and counts.max() == 2
    for batch in batches:
        for r, row in enumerate(batch.clip):
            for place, clip in enumerate(row[row >= 0]):
                own = batch.text.segment[r, batch.target[r]] == place + 1
                assert set(batch.origin[r][own & (batch.target[r] >= 0)]) == {int(clip >= 5)}


def broken(clips, number, folder):
    """The clips with one file of which all but the first frames are zeros: it opens, but cannot be
    decoded."""
    path = folder / "broken.mp4"
    data = bytearray(Path(clips[number].video).read_bytes())
    start = data.index(b"mdat") - 4
    size = int.from_bytes(data[start : start + 4], "big")
    data[start + size - 100 : start + size] = bytes(100)
    path.write_bytes(data)
    return [dataclasses.replace(c, video=str(path)) if i == number else c for i, c in enumerate(clips)]


@pytest.mark.slow
def test_worker_processes_change_nothing(load, clips, tmp_path):
    clips = broken(clips, 4, tmp_path)
    threads, workers = load(clips, max_fault_share=0.1), load(clips, max_fault_share=0.1, workers=2)
    for ours, theirs in zip(take(workers, 5), take(threads, 5), strict=True):
        assert_equal(ours, theirs)
    assert set(workers.faults) == {"c4"} and workers.faults == threads.faults
    assert workers.notes == threads.notes


@pytest.mark.parametrize("kind", ["broken", "gone", "outside"])
def test_a_fault_leaves_out_its_clip_and_nothing_else(load, clips, tmp_path, kind):
    """Not its row: the other clips of the row are what they were, in the same order."""
    faulty = list(clips)
    if kind == "broken":
        faulty = broken(clips, 4, tmp_path)
    else:
        wrong = dict(gone=dict(video="gone.mp4"), outside=dict(start=1.0, end=30.0))
        faulty[4] = dataclasses.replace(clips[4], **wrong[kind])
    loader, good = load(faulty, max_fault_share=0.1), load(clips)
    assert (list(loader.faults) == ["c4"]) == (kind != "broken")  # known before the first step
    shared = 0
    for ours, theirs in zip(take(loader, 4), take(good, 4), strict=True):
        left = [[n for n in row if n not in (4, -1)] for row in theirs.clip.tolist()]
        assert [[n for n in row if n != -1] for row in ours.clip.tolist()] == left
        shared += any(4 in row and len(rest) for row, rest in zip(theirs.clip.tolist(), left, strict=True))
        ours, theirs = unpacked.clips_of(ours), unpacked.clips_of(theirs)
        for number, part in ours.items():
            unpacked.same(part, theirs[number])
    assert shared and list(loader.faults) == ["c4"]
    reason = dict(
        broken="broken.mp4", gone="gone.mp4", outside="span 1 to 30 s is not inside the clip of 2 s"
    )
    assert reason[kind] in loader.faults["c4"]
    assert any(f"left out: c4: {loader.faults['c4']}" in line for line in loader.summary())


def test_a_faulty_prompt_is_an_empty_row(load, clips, tmp_path):
    loader, good = (
        load(broken(clips, 4, tmp_path), packed=False, max_fault_share=0.1),
        load(clips, packed=False),
    )
    found = 0
    for ours, theirs in zip(take(loader, 5), take(good, 5), strict=True):
        for row, clip in enumerate(theirs.clip):
            pick = lambda leaf: leaf[row]  # noqa: B023, E731
            if clip == 4:
                found += 1
                assert ours.clip[row] == -1 and not ours.text.segment[row].any()
            else:
                assert_equal(jax.tree.map(pick, ours), jax.tree.map(pick, theirs))
    assert found == 1


def test_too_many_faults_stop_the_run(load, clips, tmp_path):
    loader = load(broken(clips, 4, tmp_path), max_fault_share=0.09)
    with pytest.raises(UserError, match=r"1 of 10 clips .* data.max_fault_share=0.09 .* c4: .*broken.mp4"):
        take(loader, 5)
    with pytest.raises(UserError, match="gone.mp4"):
        load([dataclasses.replace(clips[0], video="gone.mp4"), clips[1]])
    with pytest.raises(UserError, match="none of 1 clips can be used; the first: .*gone.mp4"):
        load([dataclasses.replace(clips[0], video="gone.mp4")])


def test_later_epochs_decode_nothing(load, clips, tmp_path):
    for clip in clips:
        os.link(clip.video, tmp_path / Path(clip.video).name)
    moved = [dataclasses.replace(c, video=str(tmp_path / Path(c.video).name)) for c in clips]
    loader = load(moved)
    first = {}
    for batch in take(loader, 24):  # far enough that what was read ahead in the first epoch is done
        first |= unpacked.clips_of(batch)
    for clip in moved:
        os.unlink(clip.video)
    for batch in take(loader, 6):
        for number, part in unpacked.clips_of(batch).items():
            unpacked.same(part, first[number])
    assert not loader.faults


def test_a_changed_file_or_size_is_decoded_anew(load, tmp_path):
    clip = Clip("a", str(tmp_path / "a.mp4"), QUESTION, ANSWER)
    for number, frames in ((0, 16), (3, 16), (3, 8)):
        write_video(clip.video, [level(number)] * frames)
        for side in (56, 28):
            (part,) = epoch(load([clip], batch_size=1, max_pixels=side * side)).values()
            assert abs(grey(part) - level(number)) <= 2
            assert slots_in(part) == frames // 2 and (part["slot"] == 0).sum() == (side // 28) ** 2


def test_rejected_clips_and_remarks_are_listed(load, clips):
    clips[3] = dataclasses.replace(clips[3], question="word " * 200)
    clips[5] = dataclasses.replace(clips[5], answer="word " * 50)
    clips[6] = dataclasses.replace(clips[6], question="<|video_pad|> and this one?")
    clips[0] = dataclasses.replace(clips[0], keywords=(Keyword("flashes", "flash", ((0.3, 0.35),)),))
    loader = load(clips, fps=1.0, frames=0, min_frames=2)
    assert sorted(epoch(loader)) == [0, 1, 2, 4, 7, 8, 9]
    reasons = {reason[:12]: ids for reason, ids in loader.index.rejected.items()}
    assert reasons == {"question and": ["c3"], "answer above": ["c5"], "video prompt": ["c6"]}
    ((note, ids),) = [(note, ids) for note, ids in loader.notes.items() if "between" in note]
    assert "c0" in ids
    lines = loader.summary()
    assert sum("1 clips rejected: " in line for line in lines) == 3 and any(note in line for line in lines)
    assert lines[0].startswith(f"7 clips in {loader.usage.rows} rows of 1 shape, ")


@pytest.mark.parametrize("fields", [dict(), dict(frames=0, fps=8.0)])
def test_a_clip_is_the_part_of_its_file_that_it_names(load, tmp_path, fields):
    path = write_video(tmp_path / "a.mp4", 20 + 5 * np.arange(40))  # five seconds at 8 frames a second
    flash = Keyword("flashes", "flash", ((3.0, 3.25),))  # seconds of the file: frames 24 and 25
    parts = {"end": (None, 2.0), "start": (4.0, None), "both": (2.0, 4.0)}
    clips = [Clip(name, path, QUESTION, ANSWER, (flash,), start=s, end=e) for name, (s, e) in parts.items()]
    for _ in range(2):  # decoded, then from the cache
        found = epoch(load(clips, batch_size=1, **fields))
        for number, first, count in ((0, 0, 16), (1, 32, 8), (2, 16, 16)):
            part = found[number]
            visual = part["slot"] >= 0
            units = part["pixels"][visual].reshape(count // 2, 4, 4, 3, 2, -1)  # of a slot, patches, channels
            numbers = (units.mean((1, 2, 3, 5)).ravel() - 20) / 5
            np.testing.assert_allclose(numbers, first + np.arange(count), atol=0.5)  # of a frame's step
        assert [found[n]["key_slots"].any() for n in range(3)] == [False, False, True]
        np.testing.assert_array_equal(np.flatnonzero(found[2]["key_slots"][0]), [4])


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(fps=2.0), "data.frames=16 and data.fps=2.0"),
        (dict(frames=0), "data.frames=0 and data.fps=0.0"),
        (dict(replacement="keys"), "data.replacement='keys'"),
        (dict(pool="none"), "data.pool='none'"),
        (dict(batch_size=3, processes=(0, 2)), "batch=3 does not divide by 2"),
    ],
)
def test_configs_that_contradict_themselves_are_refused(load, clips, fields, message):
    with pytest.raises(UserError, match=message):
        load(clips, **fields)


def test_a_tokenizer_of_another_model_is_refused(clips, text):
    other = dataclasses.replace(text, video_pad=text.video_pad + 1)
    with pytest.raises(UserError, match="do not belong together"):
        options = dict(packed=True, seed=0, batch_size=1)
        make_batch_maker(clips, other, stub_config(text), base.get_config().data, **options)


def test_a_damaged_page_of_the_cache_is_decoded_again_and_noted(load, clips, tmp_path):
    first = load(clips)
    whole = epoch(first)
    # A copy, for the first loader may still read ahead, and would mend the page itself.
    copy = shutil.copytree(tmp_path / "cache", tmp_path / "copy")
    files = sorted(copy.glob("frames/*/*.frames"))
    assert len(files) == 10
    page = bytearray(files[0].read_bytes())
    page[-1] ^= 1
    files[0].write_bytes(page)
    loader = load(clips, cache=str(copy))
    again = epoch(loader)
    jax.tree.map(np.testing.assert_array_equal, again, whole)
    ((note, ids),) = loader.notes.items()
    assert note == DAMAGED_PAGE and len(ids) == 1


def test_a_full_disk_is_noted_and_stops_nothing(load, clips, monkeypatch):
    def full(self, *_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FrameCache, "put", full)
    loader = load(clips)
    epoch(loader)
    ((note, ids),) = loader.notes.items()
    assert "No space left" in note and len(ids) == 10


@BOTH
def test_a_batch_that_is_larger_than_the_data_is_said(load, clips, packed):
    """Ten clips: packed, a step of 64 rows repeats them; as prompts, it leaves rows empty."""
    assert load(clips, packed=packed).warnings() == []
    loader = load(clips, packed=packed, batch_size=64)
    rows = loader.usage.rows if packed else 10
    said = (
        f"each step sees each clip about {64 / rows:.1f} times"
        if packed
        else "54 rows of every step are empty"
    )
    (line,) = loader.warnings()
    assert line.startswith("WARNING: ") and f"a step has 64 rows, and 10 clips fill {rows}, so {said}" in line
    first = next(loader)
    counts = np.bincount(first.clip[first.clip >= 0], minlength=10)
    assert counts.min() > 1 if packed else (counts == 1).all()
