"""Batches of clips: their order, resuming, processes, workers, faults and caches."""

import dataclasses
import os
from pathlib import Path
from types import SimpleNamespace

import av
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import ExifTags, Image

from tests.words import stub_config, word_text
from vpjax.data import index as index_module
from vpjax.data.cache import FrameCache
from vpjax.data.pipeline import Loader, make_batch_maker
from vpjax.types import Clip, Keyword, UserError

QUESTION = "What happens?"
ANSWER = "A red square flashes."


def write_video(path, number, frames=16, width=56, height=56, fps=8):
    """A still of its own grey, so that a row can be recognised by its pixels; brighter in the last frame."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "18", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(frames):
            pixels = np.full((height, width, 3), 40 + 10 * number + 40 * (i == frames - 1), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Ten files: 0-6 square, 7-8 wide, 9 square but of only 6 frames."""
    folder = tmp_path_factory.mktemp("videos")
    for i in range(10):
        write_video(folder / f"{i}.mp4", i, frames=6 if i == 9 else 16, width=84 if i in (7, 8) else 56)
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
    """A function that makes a Loader with small defaults, and closes it after the test."""
    loaders = []
    config = stub_config(text)
    defaults = dict(
        cache=str(tmp_path / "cache"),
        cache_gb=1.0,
        frames=16,
        fps=0.0,
        min_pixels=28 * 28,
        max_pixels=84 * 56,
        length_multiple=8,
        max_prompt=200,
        max_answer=40,
        keywords=2,
        keyword_tokens=3,
        max_fault_share=0.0,
        max_side=8192,
        tfio_python="",
        workers=0,
        replacement="key",
        pool="key",
        widen=0,
    )

    def make(clips, *, seed=3, batch_size=4, start_step=0, processes=(0, 1), **fields):
        data_config = ConfigDict(defaults | fields)
        place = dict(process_index=processes[0], process_count=processes[1])
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


def assert_equal(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_every_clip_comes_once_an_epoch_with_its_own_pixels(load, clips):
    loader = load(clips)
    assert loader.plan.steps_per_epoch == 3  # eight square clips, two wide ones
    epochs = [take(loader, 3) for _ in range(4)]
    orders = []
    for batches in epochs:
        assert sorted(i for b in batches for i in b.clip.tolist() if i >= 0) == list(range(10))
        orders.append([b.clip.tolist() for b in batches])
        for batch in batches:
            assert (
                len({clips[i].video in (clips[7].video, clips[8].video) for i in batch.clip if i >= 0}) == 1
            )
            for row, i in enumerate(batch.clip):
                if i >= 0:
                    assert abs(int(batch.frames[row, 0].mean()) - (40 + 10 * i)) <= 2
                    assert batch.slots[row, 0].sum() == 1
    assert len({str(order) for order in orders}) == 4  # shuffled anew each time
    assert len({str([len(set(b)) for b in order]) for order in orders}) > 1  # and so are the batches


def test_left_over_rows_are_masked(load, clips):
    (batch,) = [b for b in take(load(clips), 3) if b.frames.shape[3] == 84]
    assert batch.clip[2:].tolist() == [-1, -1] and (batch.clip[:2] >= 0).all()
    for field in (batch.target, batch.slots, batch.prompt_valid, batch.slot_valid):
        assert not field[2:].any() and field[:2].any()


def test_a_short_clip_shares_the_bucket_with_masked_slots(load, clips):
    batches = take(load(clips), 3)
    (batch, row), *_ = [(b, b.clip.tolist().index(9)) for b in batches if 9 in b.clip]
    assert batch.slot_valid[row].tolist() == [True] * 3 + [False] * 5
    assert (batch.visual[row] < batch.prompt.shape[1]).sum() == 3 * 4
    whole = next(i for i, clip in enumerate(batch.clip) if 0 <= clip < 9)
    assert batch.video_end == batch.visual[whole].max() + 1 > batch.visual[row, :12].max()


def test_a_seed_fixes_the_order(load, clips):
    ours, same, other = (take(load(clips, seed=seed), 3) for seed in (1, 1, 2))
    for a, b in zip(ours, same, strict=True):
        assert_equal(a, b)
    assert [b.clip.tolist() for b in ours] != [b.clip.tolist() for b in other]


@pytest.mark.parametrize("replacement", ["key", "random"])
def test_a_loader_started_at_any_step_goes_on_bitwise(load, clips, replacement):
    whole = take(load(clips, replacement=replacement), 8)
    for start in (1, 3, 5):
        loader = load(clips, replacement=replacement, start_step=start)
        for batch in whole[start:]:
            assert_equal(next(loader), batch)
        assert loader.step == 8


def test_two_processes_yield_the_rows_of_one(load, clips):
    one = take(load(clips), 4)
    halves = [take(load(clips, processes=(p, 2)), 4) for p in range(2)]
    for whole, *parts in zip(one, *halves, strict=True):
        assert_equal(whole, jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts))


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


def test_a_clip_that_cannot_be_decoded_is_a_masked_row(load, clips, tmp_path):
    good = take(load(clips), 3)
    loader = load(broken(clips, 4, tmp_path), max_fault_share=0.1)
    found = 0
    for ours, theirs in zip(take(loader, 3), good, strict=True):
        for row, clip in enumerate(theirs.clip):
            if clip == 4:
                found += 1
                assert ours.clip[row] == -1 and not ours.target[row].any() and not ours.slots[row].any()
            else:
                pick = lambda leaf: leaf[row]  # noqa: B023, E731
                assert_equal(jax.tree.map(pick, ours), jax.tree.map(pick, theirs))
    assert found == 1
    assert list(loader.faults) == ["c4"] and "broken.mp4" in loader.faults["c4"]
    assert any("masked: c4: " in line for line in loader.summary())


def test_a_missing_file_is_a_masked_row_too(load, clips, videos):
    gone = [dataclasses.replace(c, video=str(videos / "gone.mp4")) if c.id == "c2" else c for c in clips]
    good = take(load(clips), 3)
    loader = load(gone, max_fault_share=0.1)
    assert list(loader.faults) == ["c2"] and "gone.mp4" in loader.faults["c2"]  # known before the first step
    for ours, theirs in zip(take(loader, 3), good, strict=True):
        assert ours.clip.tolist() == [-1 if i == 2 else i for i in theirs.clip]


def test_too_many_faults_stop_the_run(load, clips, tmp_path):
    loader = load(broken(clips, 4, tmp_path), max_fault_share=0.09)
    with pytest.raises(UserError, match=r"1 of 10 clips .* data.max_fault_share=0.09 .* c4: .*broken.mp4"):
        take(loader, 3)
    with pytest.raises(UserError, match="gone.mp4"):
        load([dataclasses.replace(clips[0], video="gone.mp4"), clips[1]])
    with pytest.raises(UserError, match="none of 1 videos can be used; the first: .*gone.mp4"):
        load([dataclasses.replace(clips[0], video="gone.mp4")])


def test_later_epochs_decode_nothing(load, clips, tmp_path):
    for clip in clips:
        os.link(clip.video, tmp_path / Path(clip.video).name)
    moved = [dataclasses.replace(c, video=str(tmp_path / Path(c.video).name)) for c in clips]
    loader = load(moved)
    first = take(loader, 24)  # far enough that whatever was prefetched during the first epoch is done
    for clip in moved:
        os.unlink(clip.video)
    rest = take(loader, 6)
    assert not loader.faults
    pixels = {i: b.frames[row] for b in first for row, i in enumerate(b.clip) if i >= 0}
    for batch in rest:
        for row, i in enumerate(batch.clip):
            if i >= 0:
                np.testing.assert_array_equal(batch.frames[row], pixels[i])


def test_a_changed_file_or_size_is_decoded_anew(load, tmp_path):
    path = tmp_path / "a.mp4"
    clip = Clip("a", str(path), QUESTION, ANSWER)
    for number, frames in ((0, 16), (3, 16), (3, 8)):
        write_video(path, number, frames)
        for side in (56, 28):
            batch = next(load([clip], batch_size=1, max_pixels=side * side))
            assert abs(int(batch.frames[0, 0].mean()) - (40 + 10 * number)) <= 2
            assert batch.slot_valid.sum() == frames // 2 and batch.frames.shape[2:4] == (side, side)


def test_unchanged_files_are_not_probed_again(load, clips, monkeypatch, tmp_path):
    load(clips)
    probed = []
    probe = index_module.probe
    monkeypatch.setattr(index_module, "probe", lambda path, **options: probed.append(path) or probe(path))
    load(clips)
    assert probed == []
    os.utime(clips[3].video, ns=(1, 1))
    load(clips)
    assert probed == [clips[3].video]


def test_clips_that_are_too_long_are_rejected_and_listed(load, clips):
    clips[3] = dataclasses.replace(clips[3], question="word " * 200)
    clips[5] = dataclasses.replace(clips[5], answer="word " * 50)
    clips[6] = dataclasses.replace(clips[6], question="<|video_pad|> and this one?")
    loader = load(clips)
    reasons = {reason[:12]: ids for reason, ids in loader.rejected.items()}
    assert reasons == {"prompt above": ["c3"], "answer above": ["c5"], "video prompt": ["c6"]}
    used = {i for b in take(loader, loader.plan.steps_per_epoch) for i in b.clip.tolist()} - {-1}
    assert used == {0, 1, 2, 4, 7, 8, 9}
    assert sum("rejected" in line for line in loader.summary()) == 3
    with pytest.raises(UserError, match="every one of 10 clips is rejected: prompt above 5 tokens"):
        load(clips, max_prompt=5)


def test_events_between_the_sampled_frames_are_reported(load, clips):
    clips[0] = dataclasses.replace(clips[0], keywords=(Keyword("flashes", "flash", ((0.3, 0.35),)),))
    loader = load(clips, fps=1.0, frames=0)
    take(loader, loader.plan.steps_per_epoch)
    ((note, ids),) = [(n, ids) for n, ids in loader.notes.items() if "between" in n]
    assert "c0" in ids
    assert any(note in line for line in loader.summary())


def test_sampling_by_fps(load, clips, videos, tmp_path):
    write_video(tmp_path / "long.mp4", 2, frames=80)
    clips = [clips[0], Clip("long", str(tmp_path / "long.mp4"), QUESTION, ANSWER)]
    loader = load(clips, fps=2.0, frames=0, batch_size=1)
    frames = {int(b.clip[0]): (b.frames.shape[1], int(b.slot_valid.sum())) for b in take(loader, 2)}
    assert 2 * frames[0][1] == pytest.approx(4, abs=2) and 2 * frames[1][1] == pytest.approx(20, abs=2)
    for room, used in frames.values():
        assert 2 * used <= room <= 1.5 * 2 * used + 2
    (epoch,) = [take(load(clips, fps=2.0, frames=0, batch_size=1), 2)]
    assert {int(b.slot_valid.sum()) for b in epoch} == {used for _, used in frames.values()}


def ramp(path):
    """Five seconds at 8 frames per second; each frame is a little brighter than the one before."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "10", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 56, 56, "yuv420p"
        for i in range(40):
            pixels = np.full((56, 56, 3), 20 + 5 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return str(path)


@pytest.mark.parametrize("fields", [dict(), dict(frames=0, fps=8.0)])
def test_a_clip_is_the_part_of_its_file_that_it_names(load, tmp_path, fields):
    path = ramp(tmp_path / "a.mp4")
    flash = Keyword("flashes", "flash", ((3.0, 3.25),))  # seconds of the file: frames 24 and 25
    parts = {"end": (None, 2.0), "start": (4.0, None), "both": (2.0, 4.0)}
    clips = [Clip(name, path, QUESTION, ANSWER, (flash,), start=s, end=e) for name, (s, e) in parts.items()]
    for _ in range(2):  # decoded, then from the cache
        loader = load(clips, batch_size=1, **fields)
        rows = {int(b.clip[0]): b for b in take(loader, loader.plan.steps_per_epoch)}
        for number, first, count in ((0, 0, 16), (1, 32, 8), (2, 16, 16)):
            frames = rows[number].frames[0][:count]
            numbers = (frames.mean((1, 2, 3)) - 20) / 5
            np.testing.assert_allclose(
                numbers, first + np.arange(count), atol=0.5
            )  # of a step between frames
            assert rows[number].slot_valid.sum() == count / 2
        assert [rows[n].slots.any() for n in range(3)] == [False, False, True]
        np.testing.assert_array_equal(np.flatnonzero(rows[2].slots[0, 0]), [4])


def test_a_part_that_is_not_in_the_file_is_a_masked_row(load, clips):
    clips[0] = dataclasses.replace(clips[0], start=1.0, end=30.0)
    loader = load(clips, max_fault_share=0.1)
    assert "0.mp4: the span 1 to 30 s is not inside the clip of 2 s" in loader.faults["c0"]
    assert {int(n) for b in take(loader, loader.plan.steps_per_epoch) for n in b.clip} == {-1, *range(1, 10)}


def test_text_only_clips_have_batches_of_their_own(load, clips):
    clips = [*clips[:2], Clip("t", "", QUESTION, ANSWER)]
    batches = take(load(clips), 2)
    assert sorted(b.frames.shape[1] for b in batches) == [0, 16]
    (plain,) = [b for b in batches if b.frames.shape[1] == 0]
    assert plain.clip.tolist() == [2, -1, -1, -1] and plain.video_end == 0 and plain.target[0].any()


def test_images_are_videos_of_one_slot_as_they_are_shown(load, text, tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # shown a quarter turn to the right
    Image.new("RGB", (56, 28), (200, 0, 0)).save(tmp_path / "a.jpg", exif=exif, quality=95)
    batch = next(load([Clip("a", str(tmp_path / "a.jpg"), QUESTION, ANSWER)], batch_size=1))
    assert batch.frames.shape == (1, 2, 56, 28, 3) and abs(int(batch.frames[..., 0].mean()) - 200) <= 3
    assert (batch.prompt == text.image_pad).sum() == 2 == batch.visual.shape[1]


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


def test_a_tokenizer_of_another_model_is_refused(load, clips, text):
    other = dataclasses.replace(text, video_pad=text.video_pad + 1)
    with pytest.raises(UserError, match="do not belong together"):
        make_batch_maker(
            clips,
            other,
            SimpleNamespace(image_token=text.image_pad, video_token=text.video_pad),
            ConfigDict(dict(frames=16, fps=0.0, replacement="key", pool="key", tfio_python="")),
            seed=0,
            batch_size=1,
        )


def test_a_full_disk_is_noted_and_stops_nothing(load, clips, monkeypatch):
    def full(self, *_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FrameCache, "put", full)
    loader = load(clips)
    take(loader, 3)
    ((note, ids),) = loader.notes.items()
    assert "No space left" in note and len(ids) == 10
