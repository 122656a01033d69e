"""Evaluation while a run trains: its numbers are those of other ways to compute them."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from tests.runs import make_run
from vpjax.data.pipeline import make_batch_maker
from vpjax.evaluation import heldout
from vpjax.evaluation import run as evaluation
from vpjax.models.sharding import make_mesh
from vpjax.models.vlm import leaves
from vpjax.recipes import base
from vpjax.training import checkpoint, run_config, sft
from vpjax.training.setup import instructed, read_split
from vpjax.types import UserError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_runs")]

CLIPS, PART = 10, 6


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("heldout") / "run", clips=CLIPS)


@pytest.fixture(scope="module")
def run(workdir):
    """(config, model, text, mesh) of a run, over 8 devices."""
    config = base.get_config()
    stored = run_config.read(workdir)
    config.update({name: stored[name] for name in ("data", "model", "events")})
    config.eval_part, config.eval_controls = PART, ("key", "blind", "none")
    config.data.instructions = ConfigDict(dict(caption="In one sentence."))
    config.mesh = ConfigDict(dict(data=2, fsdp=2, tensor=2))
    mesh = make_mesh(config.mesh)
    model, text = checkpoint.load_model(workdir, mesh=mesh)
    return config, model, text, mesh


@pytest.fixture(scope="module")
def part(run, workdir, quick_runs):
    config, model, text, mesh = run
    return heldout.HeldOut(config, workdir, text, model.config, mesh)


@pytest.fixture(scope="module")
def metrics(part, run):
    return part(run[1])


def test_the_part_is_spread_over_the_clips(part):
    assert [clip.id for clip in part.clips] == [f"heldout-{n:06d}" for n in (0, 2, 4, 5, 7, 9)]


def test_answers_have_the_scores_of_an_evaluation(part, metrics, run, workdir, tmp_path):
    """Of ``vpjax.evaluate`` on a file of the same clips, whose questions have the instruction already."""
    config, *_ = run
    clips = [json.loads(line) for line in open(part.request.data)]
    chosen = {clip.id: clip for clip in part.clips}
    records = [dict(c, question=chosen[c["id"]].question) for c in clips if c["id"] in chosen]
    (tmp_path / "part.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    request = dataclasses.replace(
        part.request, data=tmp_path / "part.jsonl", videos=str(part.request.data).rpartition("/")[0],
        out=tmp_path / "out", limit=None,
    )  # fmt: skip
    _, results = evaluation.evaluate(request, print)
    found = {}
    for control, scores in results["controls"].items():
        prefix = "heldout" if control == "none" else f"heldout/{control}"
        found |= {f"{prefix}/readable": scores["readable"]}
        found |= {f"{prefix}/{name}": x["micro"]["mean"] for name, x in scores["metrics"].items()}
    assert {"heldout/accuracy", "heldout/key/accuracy", "heldout/blind/accuracy"} <= set(found)
    answers = {name: x for name, x in metrics.items() if not name.endswith("/loss")}
    assert answers == {name: found[name] for name in answers} and set(answers) <= set(found)


def test_the_loss_is_that_of_training(metrics, run, workdir):
    """The SFT step's loss of the same clips in packed rows, by another program: the law of packing."""
    config, model, text, _ = run
    clips = heldout.spread(read_split(config, "heldout", "events"), PART)
    data = ConfigDict(config.data.to_dict() | dict(row_tokens=0))
    maker, index = make_batch_maker(
        clips, text, model.config, data, packed=True, seed=0, batch_size=PART, answers=sft.NO_ANSWERS
    )
    rows = maker.plan.epochs[0]
    maker = dataclasses.replace(maker, part=range(len(rows)))
    batch = maker(0).batch
    whole = jax.device_put(model, jax.devices()[0])
    sums = jax.jit(lambda model: sft.summed_losses(model, {}, batch, batch, config, 1))(whole)
    assert int(sums.tokens.sum()) == sum(len(text.answer(clip.answer)) for clip in clips)
    expected = float(sums.lm.sum() / sums.tokens.sum())
    assert metrics["heldout/loss"] == pytest.approx(expected, rel=1e-5)  # float32 sums in another order
    # The loss sees what is shown: without the video it is another one.
    assert abs(metrics["heldout/blind/loss"] - expected) > 1e-3


def test_it_may_be_asked_again(part, metrics, run):
    """After another model it measures the first one as before, bit for bit, by the same programs."""
    model = run[1]
    other = jax.tree.map(lambda x: x * 1.5, model)
    encode, complete, score = (part.predictor.encode, part.predictor.complete, part.predictor.score)
    before = [program._cache_size() for program in (encode, complete, score)]
    assert part(other) != metrics
    assert part(model) == metrics
    assert [program._cache_size() for program in (encode, complete, score)] == before
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in leaves(part.predictor.model).values())


def test_names_are_known_before_the_first_evaluation(part, metrics):
    assert part.names() == list(metrics)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("keep_best", "accuracy", "^config.keep_best='accuracy' is no metric.*heldout/loss, heldout/key"),
        ("eval_controls", ("none", "reversed"), "^config.eval_controls=.*'reversed'.*none, key, random"),
        ("eval_controls", (), "^config.eval_controls"),
    ],
)  # fmt: skip
def test_what_does_not_exist_is_named(run, workdir, field, value, message):
    config, model, text, mesh = run
    changed = config.copy_and_resolve_references()
    changed[field] = value
    with pytest.raises(UserError, match=message):
        heldout.HeldOut(changed, workdir, text, model.config, mesh)


def test_clips_of_ones_own_have_the_scores_of_their_tasks(run, workdir, tmp_path):
    """No event of theirs is known, so they are evaluated as ``--benchmark clips``."""
    config, model, text, mesh = run
    with open(heldout.split_file(config, "heldout", "events")) as file:
        records = [json.loads(line) for line in file][:3]
    folder = str(heldout.split_file(config, "heldout", "events")).rpartition("/")[0]
    choices = ["A red square.", "A blue circle."]
    for record in records:
        record |= dict(extra={}, task="choice", choices=choices, answer="A", keywords=[], spans=[])
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    changed = config.copy_and_resolve_references()
    changed.data.heldout, changed.data.videos = str(tmp_path / "own.jsonl"), folder
    changed.eval_controls = ("none",)
    heldout.check_heldout(changed, workdir, print)
    own = heldout.HeldOut(changed, workdir, text, model.config, mesh)
    assert own.request.benchmark == "clips"
    assert own.names() == ["heldout/loss", "heldout/readable", "heldout/accuracy"]
    changed.data.videos = str(tmp_path)
    with pytest.raises(UserError, match="none of 3 videos is there.*set data.heldout to ''"):
        heldout.check_heldout(changed, workdir, print)


def test_the_loss_is_a_mean_over_tokens():
    """Of two answers of 1 and 3 tokens: (1 + 9) / 4, not (1 / 1 + 9 / 3) / 2. The second has no V~."""
    own = object.__new__(heldout.HeldOut)
    own.request = evaluation.Request("events", controls=("none", "key"))
    ids = {"a": [np.zeros(1)], "b": [np.zeros(3)]}
    query = [heldout.Prediction(id, c, True, "x") for c in ("none", "key") for id in ids]
    query[3] = query[3]._replace(text="", fault=heldout.NO_KEY)
    scores = dict(zip([x.query for x in query], map(np.array, [[-1.0], [-9.0], [-2.0], [-5.0]]), strict=True))
    own.predictor = type("Stub", (), dict(scores=scores, candidate_ids=ids))
    assert own._losses(query) == {"heldout/loss": 2.5, "heldout/key/loss": 2.0}


def test_splits_of_no_clips_are_not_evaluated():
    config = base.get_config()
    assert heldout.heldout_splits(config) == ["heldout", "unseen"]
    config.events.unseen = 0
    assert heldout.heldout_splits(config) == ["heldout"]
    config.data.heldout = ""
    assert heldout.heldout_splits(config) == []


def test_instructions_are_those_of_the_run(part):
    clip = part.clips[0]
    assert clip.question.endswith("\nIn one sentence.")
    assert instructed(clip, {}) == clip
