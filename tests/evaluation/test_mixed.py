"""Clips of any sizes and lengths are evaluated together, in few programs, as they are alone."""

import dataclasses

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from tests import runs
from vpjax.data.collate import single_prompt
from vpjax.evaluation import run as evaluation
from vpjax.evaluation.ask import ClipPredictor, Query
from vpjax.evaluation.run import evaluation_data, without_answer
from vpjax.events.clips import make_event_clips
from vpjax.models.generate import generate
from vpjax.training import checkpoint, run_config
from vpjax.types import Clip, Turn

pytestmark = pytest.mark.slow

SPEC = dataclasses.replace(
    runs.SPEC, sizes=((56, 56), (56, 112), (84, 56)), seconds=(1.0, 8.0), rates=(8, 12)
)
CONTROLS = ("none", "key", "reverse", "single", "blind")  # those that do not depend on a clip's number
OPTIONS = dict(controls=CONTROLS, max_new=6)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """The model, its tokenizer, and how its videos are shown: at 8 frames a second, of 4 to 8 tokens each."""
    folder = runs.make_run(tmp_path_factory.mktemp("runs") / "run")
    data = run_config.data_of(folder)
    data.frames, data.fps, data.min_pixels, data.max_pixels = 0, 8.0, 56 * 56, 56 * 112
    model, text = checkpoint.load_model(folder)
    return model, text, evaluation_data(data, "events", model)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Videos, an image, a question without a file, one about both kinds and a conversation; the longest
    question is asked about the shortest."""
    folder = tmp_path_factory.mktemp("clips")
    file = make_event_clips(SPEC, folder, {"heldout": 10})["heldout"]
    clips, _ = evaluation.read_benchmark("events", file)
    pixels = np.random.default_rng(0).integers(0, 256, (56, 84, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")
    turns = (Turn("What is it?", "A shape."),)
    key = tuple(dataclasses.replace(keyword, video=1) for keyword in clips[3].keywords)
    last = dict(id="turns", question="Look at <video> again.", turns=turns, system="Be brief.")
    return [
        *(without_answer(clip) for clip in clips),
        Clip("image", str(folder / "image.png"), "What does the shape do?" * 4, ""),
        Clip("text", "", "What does a shape do?", ""),
        Clip(
            "several", str(folder / "image.png"), "Is <video> in <video>?", "", key, others=(clips[3].video,)
        ),
        dataclasses.replace(without_answer(clips[0]), **last),
    ]


def test_together_as_alone(loaded, clips):
    model, text, data = loaded
    together = ClipPredictor(model, text, clips, data, batch_size=4, **OPTIONS)
    assert together.maker.plan.programs > 1
    got = {prediction.query: prediction for prediction in together.predictions()}
    assert len(got) == len(clips) * len(CONTROLS)
    videos = [clip for clip in clips if clip.video.endswith(".mp4")]
    shapes = {shape for entry in together.index.entries for shape in entry.shapes}
    assert len({shape[1:] for shape in shapes}) > 3 and len({shape[0] for shape in shapes}) > 4
    for clip in [videos[4], videos[9], *clips[-4:]]:
        alone = ClipPredictor(model, text, [clip], data, batch_size=1, **OPTIONS)
        for prediction in alone.predictions():
            assert got[prediction.query] == prediction
    assert any(got[Query(clip.id, "none")].text != got[Query(clip.id, "reverse")].text for clip in videos)
    assert len({got[Query(clip.id, "none")].text for clip in videos}) > 5


def test_a_conversation_is_asked_after_its_turns(loaded, clips):
    """As the chat template writes it, with the video at its place, and without a video."""
    model, text, data = loaded
    options = dict(batch_size=1, controls=("none", "blind"), max_new=6)
    predictor = ClipPredictor(model, text, clips[-1:], data, **options)
    predicted = {prediction.control: prediction.text for prediction in predictor.predictions()}
    for control, parts in (("none", ["Look at ", None, " again."]), ("blind", ["Look at  again."])):
        content = [{"type": "text", "text": x} if x else {"type": "video"} for x in parts]
        messages = [
            dict(role="system", content="Be brief."),
            dict(role="user", content="What is it?"),
            dict(role="assistant", content="A shape."),
            dict(role="user", content=content),
        ]
        written = text.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        videos = [] if control == "blind" else predictor.maker.videos(predictor.index.entries[0])[0]
        _, prompts = single_prompt(np.array(text.encode(written), np.int32), videos, model.config)
        out = generate(model, prompts, jax.random.key(0), max_new=6, eos=text.stops)
        ids, valid = np.asarray(out.tokens)[0, 0], np.asarray(out.mask)[0, 0]
        assert predicted[control] == text.decode(ids[valid])


def test_few_programs(loaded, clips):
    """At most four for all videos under all controls, and one without videos."""
    model, text, data = loaded
    many = [dataclasses.replace(clip, id=f"{clip.id}-{n}") for n in range(3) for clip in clips]
    jax.clear_caches()
    before = generate._cache_size()
    controls = ("none", "key", "blind")
    predictor = ClipPredictor(model, text, many, data, batch_size=8, controls=controls, max_new=3)
    encode = predictor.encode._cache_size()
    assert all(not x.fault or x.control == "key" for x in predictor.predictions())
    assert 1 < predictor.encode._cache_size() - encode <= 4
    assert generate._cache_size() - before <= 5


def test_videos_keep_to_the_budget_of_training(loaded, clips):
    """Clips like those of training share it with their texts, other benchmarks have more room for texts."""
    model, text, shown = loaded
    data = ConfigDict(shown.to_dict() | dict(max_tokens=100, total_pixels=0, max_pixels=112 * 112))
    tokens = {}
    for benchmark in ("events", "mlvu"):
        fields = evaluation_data(data, benchmark, model)
        predictor = ClipPredictor(model, text, clips, fields, batch_size=4, **OPTIONS)
        assert not predictor.faults
        entries = predictor.index.entries
        visual = max(np.prod(shape) // (2 * 28 * 28) for entry in entries for shape in entry.shapes)
        tokens[benchmark] = visual, max(entry.sizes.tokens for entry in entries)
    assert tokens["events"][0] < 90 < tokens["events"][1] <= 100
    assert 90 < tokens["mlvu"][0] <= 100 < tokens["mlvu"][1]
