"""The splits of the built-in clips and their own appearances."""

from types import SimpleNamespace

import numpy as np
import pytest

from tests.videos import greys, write
from vpjax.data.clips import read_clips, write_clips
from vpjax.data.looks import RELEVANCE
from vpjax.events.clips import EventSpec, predicted_event
from vpjax.recipes import base, sft, sft_shortcut
from vpjax.training import run_config
from vpjax.training.setup import (
    check_template,
    event_spec,
    forget_unstarted,
    prepare_model,
    read_training,
    split_file,
)
from vpjax.types import Clip, Keyword, Turn, UserError


def small(config, folder):
    config.data.cache = str(folder)
    config.events.update(train=32, heldout=64, unseen=64, flicker=0.0, seconds=(1.0, 1.0))
    return config


def colour_tells(file):
    """The share of clips whose colour predicts their event."""
    clips = read_clips(file)
    return np.mean([predicted_event(clip.extra["colour"]) == clip.extra["event"] for clip in clips])


def test_one_spec_serves_all_splits_unless_told_otherwise():
    config = base.get_config()
    assert {event_spec(config, split) for split in ("train", "heldout", "unseen")} == {EventSpec()}


def test_heldout_clips_have_a_spec_of_their_own(tmp_path):
    config = small(sft_shortcut.get_config(), tmp_path)
    files = {split: split_file(config, split, "events") for split in ("train", "heldout", "unseen")}
    assert colour_tells(files["train"]) > 0.7  # .91 expected of 32 clips, with a deviation of .05
    for split in ("heldout", "unseen"):
        assert colour_tells(files[split]) < 0.3  # .125 expected of 64 clips, with a deviation of .04

    # The training clips are those of a config whose held-out clips look like them.
    config.events_heldout = {}
    assert split_file(config, "train", "events") == files["train"]
    assert split_file(config, "heldout", "events") != files["heldout"]


def test_heldout_spans_are_exact():
    """Where the spans to train on are rough: V~ would show some events, and naming them count as invented."""
    config = base.get_config()
    config.events.rough = 0.2
    assert [event_spec(config, split).rough for split in ("train", "heldout", "unseen")] == [0.2, 0.0, 0.0]
    config.events_heldout = {"rough": 0.1}
    assert event_spec(config, "heldout").rough == 0.1


def test_grpo_reads_the_keywords_of_the_last_turn(tmp_path):
    """What an earlier answer names is in the prompt of every completion. SFT trains all answers."""
    keywords = tuple(Keyword(word, word, ((0.5, 0.6),)) for word in ("flashes", "jumps", "spins"))
    turns = (Turn("What?", "It flashes."),)
    clips = [Clip("a", "", "And then?", "It flashes and jumps.", keywords, turns=turns)]
    clips.append(Clip("b", "", "What?", "It flashes and jumps.", keywords))
    write_clips(tmp_path / "a.jsonl", clips)
    config = base.get_config()
    config.data.train = str(tmp_path / "a.jsonl")
    config.data.instructions = {"caption": "Be brief."}
    told, alone = read_training(config)[0]
    assert told.keywords == alone.keywords == keywords
    assert (told.turns, told.question) == (turns, "And then?\nBe brief.")
    config.method = "grpo"
    told, alone = read_training(config)[0]
    assert told.keywords == keywords[1:] and alone.keywords == keywords


def test_windows_are_asked_with_the_instructions(tmp_path):
    """Which belong to the question that a window is asked about, as in evaluation."""
    path = str(write(tmp_path / "a.mp4", greys(64, (56, 56)), rate=8))
    keyword = Keyword("flashes", "flash", ((3.0, 3.5),))
    clips = [Clip("a", path, "What?", "It flashes.", (keyword,), spans=((3.0, 3.5),))]
    write_clips(tmp_path / "a.jsonl", clips)
    config = base.get_config()
    config.data.train, config.data.cache = str(tmp_path / "a.jsonl"), str(tmp_path / "cache")
    config.data.instructions = {"caption": "Be brief."}
    config.looks.windows, config.looks.wrong, config.looks.seconds = 1, 1, (1.0, 2.0)
    questions = {clip.question for clip in read_training(config)[0]}
    assert questions == {"What?\nBe brief.", RELEVANCE.format(question="What?\nBe brief.")}
    # A clip of which no window is known is trained on as it is, and told.
    write_clips(tmp_path / "a.jsonl", [*clips, Clip("b", path, "What?", "It flashes.", (keyword,))])
    said = []
    assert read_training(config, said.append)[0][-1].id == "b"
    assert len(said) == 1 and "1 of 2 clips are trained on as they are" in said[0] and said[0].endswith(": b")


@pytest.mark.slow  # imports transformers for the tokenizer
def test_a_model_folder_is_that_of_the_config_that_begins(tmp_path):
    """Not of one that ended with a mistake before the first step, which is mended now: its texts and frame
    rate are others. Of a run that has begun it stays, and so does a folder that another program made."""
    config = sft.get_config()
    made = []
    for fps, answer in ((2.0, "It flashes."), (8.0, "It jumps."), (8.0, "It jumps.")):
        config.data.frames, config.data.fps = 0, fps
        clips = [Clip("a", "", "What?", answer)]
        config.data.train = f"{answer}.jsonl"
        forget_unstarted(config, tmp_path)
        model_config, text = prepare_model(config, tmp_path, clips)
        made.append((model_config.tokens_per_second, len(text.encode(" jumps")) == 1))
    assert made == [(4, False), (5, True), (5, True)]
    run_config.write(tmp_path, config)
    config.data.fps = 2.0
    forget_unstarted(config, tmp_path)
    assert (tmp_path / "model/config.json").is_file()
    (tmp_path / "config.json").unlink()
    (tmp_path / "model/made_for.json").unlink()
    forget_unstarted(config, tmp_path)
    assert (tmp_path / "model/config.json").is_file()


def test_a_template_that_begins_the_answers_is_not_trained_with():
    check_template(SimpleNamespace(opening=""), "folder")
    with pytest.raises(UserError, match="init_from=folder: its chat template begins every answer with '<thi"):
        check_template(SimpleNamespace(opening="<think>\n"), "folder")


@pytest.mark.parametrize("field", ["heldout", "colour"])
def test_unknown_fields_are_named(field):
    config = base.get_config()
    config.events_heldout = {field: 1}
    assert event_spec(config) == EventSpec()
    with pytest.raises(UserError, match=f"events_heldout: no field {field}; .*prior"):
        event_spec(config, "heldout")


def test_the_clips_of_an_older_vpjax_are_not_made_anew(tmp_path):
    """Its config lacks fields; what they stand for today would be other clips than those of its training."""
    config = small(base.get_config(), tmp_path)
    del config.events.eventless
    with pytest.raises(UserError, match="events.eventless: an older vpjax drew its clips"):
        split_file(config, "heldout", "events")
