"""The held-out evaluation: what each control shows, whose answer counts where, and what the tables say."""

import dataclasses
import math

import chex
import jax
import numpy as np
import pytest

from tests import tiny
from vpjax.data.clips import read_clips
from vpjax.data.pipeline import make_loader
from vpjax.data.text import Text, train_tokenizer
from vpjax.evaluation import ask as asking
from vpjax.evaluation import heldout
from vpjax.events import clips as events
from vpjax.models.generate import Completions, generate
from vpjax.models.hf import load_pretrained
from vpjax.models.vlm import VideoLM, gather_slots
from vpjax.recipes import base
from vpjax.types import UserError

CLIPS = 18  # the first with events of every length
SPEC = events.EventSpec(frames=14)
SLOTS = 7
VIDEOS = [control for control in asking.CONTROLS if control != "blind"]
encode = jax.jit(lambda model, frames: model.encode(frames))


@dataclasses.dataclass
class Setting:
    """What ``evaluate`` is called with; batches of 4, so that the last has rows of padding."""

    model: VideoLM
    text: Text
    clips: list
    data_config: object

    def evaluate(self, **options):
        return heldout.evaluate(self.model, self.text, self.clips, self.data_config, batch_size=4, **options)

    def loader(self):
        return make_loader(self.clips, self.text, self.model.config, self.data_config, seed=0, batch_size=4)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heldout")
    train_tokenizer(events.tokenizer_sentences(SPEC), folder / "tokenizer", 400)
    text = Text.load(folder / "tokenizer")
    raw = tiny.MODELS["tied"] | dict(image_token_id=text.image_pad, video_token_id=text.video_pad)
    raw["text_config"] = raw["text_config"] | dict(vocab_size=400)
    raw["vision_config"] = raw["vision_config"] | dict(tokens_per_second=4)
    data_config = base.get_config().data
    data_config.cache, data_config.frames, data_config.max_pixels = str(folder), SPEC.frames, SPEC.size**2
    clips = read_clips(events.make_event_clips(SPEC, folder, {"heldout": CLIPS})["heldout"])
    return Setting(load_pretrained(tiny.write_checkpoint(folder, raw)), text, clips, data_config)


@pytest.fixture
def setting(made):
    return dataclasses.replace(made)


@pytest.fixture(scope="module")
def batch(made):
    loader = made.loader()
    batches = [next(loader) for _ in range(loader.steps_per_epoch)]
    loader.close()
    return next(batch for batch in batches if (batch.clip < 0).any())  # with rows of padding


def test_intervals_by_hand():
    # Wilson's score interval (Wilson 1927), worked with z = 1.96.
    np.testing.assert_allclose(heldout.Score(8, 10).interval, (0.4902, 0.9433), atol=1e-4)
    np.testing.assert_allclose(heldout.Score(0, 10).interval, (0.0, 0.2775), atol=1e-4)
    assert heldout.Score(3, 4).accuracy == 0.75
    assert all(map(math.isnan, (heldout.Score(0, 0).accuracy, *heldout.Score(0, 0).interval)))


@pytest.mark.parametrize("control", VIDEOS)
def test_a_control_is_the_changed_video(setting, batch, control):
    """Gathering features is showing the slots of ``sources`` to the vision tower."""
    source, _ = asking.sources(batch, control, seed=0)
    shown = batch.frames.reshape(4, SLOTS, 2, *batch.frames.shape[2:])
    shown = np.stack([slots[gather] for slots, gather in zip(shown, source, strict=True)])
    expected = encode(setting.model, shown.reshape(batch.frames.shape))
    got = gather_slots(encode(setting.model, batch.frames), source)
    chex.assert_trees_all_close(got, expected, atol=1e-6)


def test_sources_by_control(batch):
    batch = dataclasses.replace(
        batch, slot_valid=batch.slot_valid & (np.arange(SLOTS) < [[5], [7], [7], [7]])
    )
    identity, real = np.arange(SLOTS), batch.clip >= 0
    assert 0 < real.sum() < 4
    source, there = {}, {}
    for control in VIDEOS:
        source[control], there[control] = asking.sources(batch, control, seed=3)
        assert not there[control][~real].any()
        for row, valid in zip(source[control], batch.slot_valid, strict=True):
            np.testing.assert_array_equal(row[~valid], identity[~valid])
    replaced = batch.source != identity
    for control in ("key", "random"):
        changed = source[control] != identity
        np.testing.assert_array_equal(there[control], changed.any(axis=1) & real)
        assert there[control].any()
        np.testing.assert_array_equal(
            changed.sum(axis=1)[there["random"]], replaced.sum(axis=1)[there["random"]]
        )
    assert not ((source["random"] != identity) & replaced).any()
    for control in ("none", "shuffle", "reverse", "single"):
        np.testing.assert_array_equal(there[control], real)
    for row in np.flatnonzero(real):
        count = batch.slot_valid[row].sum()
        np.testing.assert_array_equal(source["none"][row], identity)
        np.testing.assert_array_equal(source["key"][row], batch.source[row])
        np.testing.assert_array_equal(np.sort(source["shuffle"][row]), identity)
        np.testing.assert_array_equal(source["reverse"][row][:count], identity[:count][::-1])
        assert set(source["single"][row][:count]) == {count // 2}
    again, _ = asking.sources(batch, "shuffle", seed=3)
    np.testing.assert_array_equal(source["shuffle"], again)
    assert (source["shuffle"] != asking.sources(batch, "shuffle", seed=4)[0]).any()


def test_answers_go_to_their_clips(setting, monkeypatch):
    """With a model that gives every other clip's true answer, and says nothing blind, the tables hold what is
    counted here from the clips."""

    def oracle(model, batch, key, *, features=None, max_new, eos):
        odd = (batch.clip % 2 == 1) & (features is not None)
        said = np.where(odd[:, None], batch.suffix, 0), odd[:, None] & batch.target
        return Completions(said[0][:, None], said[1][:, None], None)

    monkeypatch.setattr(asking, "generate", oracle)
    result = setting.evaluate()
    assert result.left_out == {}
    odd = {clip.id: clip for clip in setting.clips[1::2]}
    for control in asking.CONTROLS:
        mine = [answer for answer in result.answers if answer.control == control]
        if control not in ("key", "random"):
            assert sorted(answer.clip for answer in mine) == [clip.id for clip in setting.clips]
        for answer in mine:
            true = odd.get(answer.clip) if control != "blind" else None
            assert answer.text == (true.answer if true else "") and answer.right == (true is not None)
    for length in SPEC.lengths:
        of_length = [clip for clip in setting.clips if clip.extra["length"] == length]
        expected = sum(clip.id in odd for clip in of_length), len(of_length)
        assert heldout.score(result.answers, control="none", length=length) == expected
        assert result.metrics()[f"event/none/{length}"] == expected[0] / expected[1]
    assert result.metrics()["event/none"] == 0.5 and result.metrics()["event/blind"] == 0
    lines = str(result).splitlines()
    assert "18 held-out clips" in lines[0] and "0.125" in lines[0]
    assert lines[1].split() == "video 1 frame 2 frames 4 frames all answers naming one".split()
    (none,) = [line for line in lines[: len(asking.CONTROLS) + 2] if line.startswith("none")]
    assert none.split()[-5:] == "0.50 [0.29, 0.71] 18 0.50".split()


def test_a_model_is_asked(setting, batch):
    """Answers are the model's greedy ones, the same for equal questions where there is no video."""
    result = setting.evaluate(controls=("none", "reverse", "blind"))
    said = {(answer.control, answer.clip): answer.text for answer in result.answers}
    assert len(said) == len(result.answers) == 3 * CLIPS
    longest = max(len(setting.text.answer(clip.answer)) for clip in setting.clips)
    longest = -(-longest // 16) * 16
    out = generate(setting.model, batch, jax.random.key(0), max_new=longest, eos=setting.text.stops)
    for row in np.flatnonzero(batch.clip >= 0):
        words = setting.text.decode(np.asarray(out.tokens)[row, 0][np.asarray(out.mask)[row, 0]])
        assert said["none", setting.clips[batch.clip[row]].id] == words
    assert any(said["none", clip.id] != said["reverse", clip.id] for clip in setting.clips)
    blind = {(clip.question, said["blind", clip.id]) for clip in setting.clips}
    assert len(blind) == len({clip.question for clip in setting.clips})


def test_what_is_left_out_is_counted(setting, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    setting.clips = setting.clips[:6]
    setting.clips[1] = dataclasses.replace(setting.clips[1], video=str(tmp_path / "broken.mp4"))
    setting.clips[2] = dataclasses.replace(setting.clips[2], answer="A red square.")
    setting.data_config = setting.data_config.copy_and_resolve_references()
    setting.data_config.max_fault_share = 0.5
    result = setting.evaluate(controls=("none", "blind"))
    used = [clip.id for n, clip in enumerate(setting.clips) if n not in (1, 2)]
    assert sorted(answer.clip for answer in result.answers) == sorted(2 * used)
    assert sum(result.left_out.values()) == 2 and result.left_out["no event to name"] == 1
    assert any("broken.mp4" in reason for reason in result.left_out)
    assert "broken.mp4" in str(result)


def test_clips_without_events_are_refused(setting):
    setting.clips = [dataclasses.replace(clip, extra={}) for clip in setting.clips]
    with pytest.raises(UserError, match="data.heldout"):
        setting.evaluate()
