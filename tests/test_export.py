"""An exported run is a model folder of transformers, and says there what it says here."""

import contextlib
import io
import json
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from absl import flags
from absl.testing import flagsaver
from safetensors.numpy import load_file
from transformers import AutoModelForImageTextToText, AutoTokenizer
from transformers.models.qwen2_vl import Qwen2VLImageProcessor

from tests import runs, tiny
from vpjax import checkpoint, exporting, predict
from vpjax.data import events
from vpjax.data.rows import bucket_of, collate, prompt_row
from vpjax.data.text import Text
from vpjax.data.video import Sampling, read_frames
from vpjax.models import hf
from vpjax.models.vlm import leaves
from vpjax.types import UserError

STEPS = 12
QUESTION = "What does the shape do?"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return runs.make_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def exported(workdir):
    exporting.export(workdir, workdir.parent / "exported")
    return workdir.parent / "exported"


@pytest.fixture(scope="module")
def clip(workdir):
    file = events.make(runs.SPEC, workdir.parent, {"heldout": 1}, progress=False)["heldout"]
    return str(file.parent / json.loads(file.read_text())["video"])


def predicted(**options):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    out = io.StringIO()
    with flagsaver.flagsaver(json=True, max_new_tokens=STEPS, prompt=QUESTION, **options):
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            assert predict.main() == 0
    return json.loads(out.getvalue())


def test_transformers_says_the_same(workdir, exported, clip):
    """On the same frames, at the positions of training: each token that vpjax.predict writes is the best of
    transformers' logits after those before it."""
    seen = dict(video=clip, frames=runs.SPEC.frames, max_pixels=runs.SPEC.size**2)
    said = predicted(model=str(exported), **seen)
    assert said["text"] == predicted(model=str(workdir), **seen)["text"] and len(said["token_ids"]) > 2

    theirs = AutoModelForImageTextToText.from_pretrained(exported).eval()
    assert type(theirs).__name__ == "Qwen2_5_VLForConditionalGeneration" and theirs.dtype == torch.float32
    config, text = hf.read_config(exported), Text.load(exported)
    video = read_frames(clip, Sampling(frames=runs.SPEC.frames), size=(runs.SPEC.size, runs.SPEC.size))
    row = prompt_row(text.chat(QUESTION), video, config)
    batch = collate([row], bucket_of([row], suffix=STEPS), config)
    tokens, length = said["token_ids"], len(row.prompt)
    places = torch.tensor(batch.positions).long().transpose(0, 1)
    with torch.no_grad():
        prefill = theirs(
            input_ids=torch.tensor(row.prompt[None]).long(),
            position_ids=places[:, :, :length],
            mm_token_type_ids=torch.tensor(2 * (row.prompt[None] == config.video_token)).long(),
            pixel_values_videos=tiny.patches(video.frames),
            video_grid_thw=torch.tensor([[runs.SPEC.frames // 2, 4, 4]]),
            use_cache=True,
        )
        steps = theirs(  # apart, for the random model also says <|video_pad|>
            input_ids=torch.tensor([tokens[:-1]]),
            position_ids=places[:, :, length : length + len(tokens) - 1],
            past_key_values=prefill.past_key_values,
        )
    logits = torch.cat([prefill.logits[0, -1:], steps.logits[0]])
    assert logits.argmax(-1).tolist() == tokens
    assert AutoTokenizer.from_pretrained(exported).decode(tokens, skip_special_tokens=True) == said["text"]
    assert (
        theirs.generation_config.eos_token_id == list(text.stops) and not theirs.generation_config.do_sample
    )


def test_heads_stay_behind_and_sizes_travel(workdir, exported):
    weights = load_file(exported / "model.safetensors")
    assert not [name for name in weights if "heads" in name]
    manager = checkpoint.Manager(workdir, keep=None)
    assert "heads.visual.0.kernel" in manager.shapes(3)["params"]
    manager.close()
    images = Qwen2VLImageProcessor.from_pretrained(exported)
    assert (images.size["shortest_edge"], images.size["longest_edge"]) == (56 * 56, 56 * 56)
    assert (images.patch_size, images.merge_size) == (14, 2)
    np.testing.assert_allclose(images.image_mean, tiny.FAMILIES["qwen2_5_vl"].mean)
    videos = json.loads((exported / "video_preprocessor_config.json").read_text())
    assert videos["num_frames"] == runs.SPEC.frames and "fps" not in videos and videos["do_sample_frames"]
    assert videos["size"]["longest_edge"] == 56 * 56
    assert "<|vision_start|>" in (exported / "chat_template.jinja").read_text()


def test_its_processor_loads(exported):
    pytest.importorskip("torchvision")
    from transformers import AutoProcessor

    assert AutoProcessor.from_pretrained(exported).video_processor.num_frames == runs.SPEC.frames


def test_files_that_came_with_the_model_travel_on(workdir, tmp_path):
    """Those of config.init: kept, but for the sizes that the run saw."""
    came = shutil.copytree(workdir, tmp_path / "run")
    theirs = {"image_processor_type": "Qwen2VLImageProcessor", "max_pixels": 12845056, "own": 1}
    (came / "model" / "preprocessor_config.json").write_text(json.dumps(theirs))
    (came / "model" / "generation_config.json").write_text('{"repetition_penalty": 1.05}')
    exporting.export(came, tmp_path / "out")
    got = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert got["own"] == 1 and got["max_pixels"] == 56 * 56
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {
        "repetition_penalty": 1.05
    }


def test_bfloat16(workdir, tmp_path):
    model = exporting.export(workdir, tmp_path, dtype="bfloat16")
    full, _ = checkpoint.load(workdir)
    for name, leaf in leaves(hf.load_pretrained(tmp_path)).items():
        assert leaf.dtype == jnp.bfloat16
        np.testing.assert_array_equal(leaf, leaves(full)[name].astype(jnp.bfloat16))
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert "bit for bit" in exporting.check(model, tmp_path)[0]


def test_the_check_sees_damage(workdir, exported, tmp_path):
    model, _ = checkpoint.load(workdir)
    lines = exporting.check(model, exported)
    assert "bit for bit" in lines[0] and "transformers loads it" in lines[1]
    broken = shutil.copytree(exported, tmp_path / "broken")
    weights = broken / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(UserError, match="other numbers"):
        exporting.check(model, broken)


def test_the_card(workdir, exported):
    (workdir / "metrics.jsonl").write_text('{"step": 2, "loss": 2.5, "lr": 1}\n{"step": 3, "loss": 1.25}\n')
    micro = {"mean": 0.5, "low": 0.25, "high": 0.75}
    results = {
        "request": {"benchmark": "events", "step": 3},
        "controls": {"blind": {"rows": 8, "metrics": {"accuracy": {"micro": micro}}}},
    }
    folder = workdir / "evaluate" / "events-3"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results))
    exporting.export(workdir, exported)
    card = (exported / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n") and "| loss at step 3 | 1.25 |" in card
    assert "| events | blind | accuracy | 50.0 [25.0, 75.0] | 8 |" in card
    assert "14 frames, evenly spaced" in card and "position_ids" in card


def test_mistakes_are_named(workdir, exported, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").touch()
    for from_, to, step, named in (
        (exported, tmp_path / "o", None, "no run in it"),
        (workdir, tmp_path / "o", 2, "no checkpoint of step 2"),
        (workdir, tmp_path / "taken", None, "something else"),
    ):
        with pytest.raises(UserError, match=named):
            exporting.export(from_, to, step=step)
    assert not (tmp_path / "o").exists()
    command = [sys.executable, "-m", "vpjax.export", "--out=o"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "") and "--workdir is missing" in done.stderr
