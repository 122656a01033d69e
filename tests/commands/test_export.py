"""An exported run is a model folder of transformers, which gives the same answers."""

import dataclasses
import json
import os
import runpy
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from ml_collections import ConfigDict
from safetensors.numpy import load_file
from transformers import AutoModelForImageTextToText, AutoTokenizer
from transformers.models.qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as qwen2_5_size
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as qwen3_size

from tests import runs, tiny
from tests.commands.call import call
from vpjax import export as exporting
from vpjax.data.collate import single_prompt
from vpjax.data.positions import is_visual, positions
from vpjax.data.processors import video_processor
from vpjax.data.sampling import Sampling, VideoInfo, fit
from vpjax.data.text import Text
from vpjax.data.video import read_frames
from vpjax.evaluation.exported import as_trained, check_folder
from vpjax.events import clips as events
from vpjax.models import hf
from vpjax.models.config import VLMConfig
from vpjax.models.patches import smart_resize
from vpjax.models.vlm import abstract_model, leaves
from vpjax.predict import ask, load
from vpjax.recipes import base
from vpjax.training import checkpoint, run_config
from vpjax.types import UserError

STEPS = 12
pytestmark = pytest.mark.slow
QUESTION = "What does the shape do?"
PIPES = dict(capture_output=True, text=True)


# Frames of 4 x 4 patches in each family.
SPECS = {"tied": runs.SPEC, "deep": dataclasses.replace(runs.SPEC, sizes=((64, 64),))}


@pytest.fixture(scope="module", params=SPECS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def workdir(kind, tmp_path_factory):
    return runs.make_run(tmp_path_factory.mktemp("runs") / "run", kind=kind, spec=SPECS[kind])


@pytest.fixture(scope="module")
def exported(workdir):
    exporting.export(workdir, workdir.parent / "exported")
    return workdir.parent / "exported"


@pytest.fixture(scope="module")
def clip(kind, workdir):
    file = events.make_event_clips(SPECS[kind], workdir.parent, {"heldout": 1})["heldout"]
    return str(file.parent / json.loads(file.read_text())["video"])


def test_transformers_answers_the_same(kind, workdir, exported, clip):
    """On the same frames: the greedy answer of ``generate``, which finds its positions by itself, from the
    folder as its card says to load it. The video lasts longer than its frames are wide."""
    family, size = tiny.MODELS[kind]["model_type"], SPECS[kind].sizes[0][0]
    options = dict(frames=runs.FRAMES, max_pixels=size**2, max_new_tokens=STEPS)
    loaded = load(exported)
    answer = ask(loaded, QUESTION, clip, **options)
    tokens = answer.samples[0].token_ids
    assert answer.text == ask(load(workdir), QUESTION, clip, **options).text and len(tokens) > 2

    theirs = AutoModelForImageTextToText.from_pretrained(exported).eval()
    assert type(theirs) is tiny.FAMILIES[family].model and theirs.dtype == torch.float32
    theirs, _ = as_trained(theirs, None, exported)
    model_config, text = loaded.model.config, loaded.text
    video = read_frames(clip, Sampling(frames=runs.FRAMES), size=(size, size))
    row, _ = single_prompt(text.chat(QUESTION), [video], model_config, stamps=text.stamps)
    prompt = torch.tensor(row.prompt.tokens[None]).long()
    inputs = dict(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        mm_token_type_ids=2 * (prompt == model_config.video_token).long(),
        pixel_values_videos=tiny.patches(video.frames, family),
        video_grid_thw=torch.tensor([[runs.FRAMES // 2, 4, 4]]),
    )
    if kind == "tied":
        inputs["second_per_grid_ts"] = torch.tensor([2 / 8])
    # The random model also writes <|video_pad|>, for which generate would want pixels.
    found = theirs.generate(
        **inputs, max_new_tokens=len(tokens), eos_token_id=list(text.stops), suppress_tokens=None
    )
    assert found[0, prompt.shape[1] :].tolist() == tokens
    assert AutoTokenizer.from_pretrained(exported).decode(tokens, skip_special_tokens=True) == answer.text
    assert (
        theirs.generation_config.eos_token_id == list(text.stops) and not theirs.generation_config.do_sample
    )


def test_text_continues_after_a_video(workdir, exported):
    """transformers 5 restarts text below the video's last position; with the folder's module its positions
    are those of training, in a batch padded on the left, for an image, a long video and text."""
    theirs = AutoModelForImageTextToText.from_pretrained(exported)
    config, text = theirs.config, Text.load(exported)
    if config.model_type == "qwen3_vl":  # of which transformers has the positions of training
        return
    pads = config.image_token_id, config.video_token_id
    media = {None: None, "image": (1, 2, 3), "video": (9, 2, 2)}
    prompts = []
    for kind_of, grid in media.items():
        ids = text.chat(QUESTION, (kind_of,) if kind_of else ())
        if grid is not None:
            repeats = np.where(is_visual(ids, pads), np.prod(grid), 1)
            ids = np.repeat(ids, repeats)
        prompts.append(ids)
    longest = max(map(len, prompts))
    ids = torch.tensor([[text.pad] * (longest - len(x)) + x.tolist() for x in prompts])
    inputs = dict(
        mm_token_type_ids=(ids == pads[0]).int() + 2 * (ids == pads[1]).int(),
        image_grid_thw=torch.tensor([[1, 4, 6]]),
        video_grid_thw=torch.tensor([[9, 4, 4]]),
        second_per_grid_ts=torch.tensor([0.5]),
        attention_mask=torch.tensor([[0] * (longest - len(x)) + [1] * len(x) for x in prompts]),
    )
    before, _ = theirs.model.get_rope_index(ids, **inputs)
    after, deltas = as_trained(theirs, None, exported)[0].model.get_rope_index(ids, **inputs)
    rate = config.vision_config.tokens_per_second
    for number, (x, grid) in enumerate(zip(prompts, media.values(), strict=True)):
        shown = [grid] if grid else []
        expected = positions(x, shown, [0.5] * len(shown), rate, pads=pads)
        np.testing.assert_array_equal(after[:, number, longest - len(x) :], expected)
        assert deltas[number, 0] == expected.max() + 1 - len(x)
    assert (before[:, :2] == after[:, :2]).all()
    # The last slot begins 4 s after the first.
    assert (after - before)[:, 2].max() == 4 * rate + 1 - 2


@pytest.mark.parametrize("kind", ["tied"], indirect=True)  # the file is the same in all folders
def test_another_program_starts_with_a_mended_transformers(exported, tmp_path, monkeypatch):
    """Such as lmms-eval, which loads model and processor itself: as_trained.py -m MODULE ARGUMENTS."""
    (tmp_path / "program.py").write_text(
        "import sys\n"
        "from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel as Model\n"
        "from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor as Processor\n"
        "names = [f.__wrapped__.__qualname__ for f in (Model.get_rope_index, Processor.__init__)]\n"
        "print(__name__, *names, sys.argv[1:])\n"
    )
    command = [sys.executable, str(exported / "as_trained.py"), "-m", "program", "--flag"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, **PIPES)
    assert done.stdout.split() == [
        "__main__",
        "Qwen2_5_VLModel.get_rope_index",
        "Qwen3VLProcessor.__init__",
        "['--flag']",
    ], done.stderr
    monkeypatch.setattr(sys, "argv", command[1:2])
    with pytest.raises(SystemExit, match="give -m, a module and its arguments"):
        runpy.run_path(command[1], run_name="__main__")


def test_heads_stay_behind_and_sizes_travel(kind, workdir, exported):
    weights = load_file(exported / "model.safetensors")
    assert not [name for name in weights if "heads" in name]
    manager = checkpoint.Manager(workdir, keep=None)
    assert "heads.visual.0.kernel" in manager.shapes(3)["params"]
    manager.close()
    images = Qwen2VLImageProcessor.from_pretrained(exported)
    family, most = tiny.FAMILIES[tiny.MODELS[kind]["model_type"]], SPECS[kind].sizes[0][0] ** 2
    assert (images.size["shortest_edge"], images.size["longest_edge"]) == (56 * 56, most)
    assert (images.patch_size, images.merge_size) == (family.patch, 2)
    np.testing.assert_allclose(images.image_mean, family.mean)
    videos = json.loads((exported / "video_preprocessor_config.json").read_text())
    assert (videos["num_frames"], videos["fps"]) == (runs.FRAMES, None)
    assert "do_sample_frames" not in videos  # clients may bring frames; the family's own default stays
    assert "<|vision_start|>" in (exported / "chat_template.jinja").read_text()


def test_its_processor_loads(exported):
    pytest.importorskip("torchvision")
    from transformers import AutoProcessor

    assert AutoProcessor.from_pretrained(exported).video_processor.num_frames == runs.FRAMES


def written(kind, **fields):
    """A config with these fields of ``data``, the model's units, and the fields of its video processor."""
    model = abstract_model(VLMConfig.from_hf(tiny.MODELS[kind]))
    data = base.get_config().data
    data.update(fields)
    return data, model.config.vision.factor, video_processor(model.config, data)[1]


@pytest.mark.parametrize(
    "fields",
    [
        dict(frames=16, fps=0.0, min_pixels=96**2, max_pixels=256**2, max_tokens=0),
        dict(frames=0, fps=2.0, min_pixels=96**2, max_pixels=256**2, max_tokens=0, total_pixels=10**6),
        dict(frames=0, fps=8.0, min_frames=8, max_frames=96, max_tokens=4096),
    ],
)
def test_an_exported_folder_is_read_as_its_run_reads(kind, fields, tmp_path):
    """vpjax.predict and vpjax.evaluate on the folder: the same rule, and the same size of a long video."""
    data, factor, written_fields = written(kind, **fields)
    family, _ = video_processor(abstract_model(VLMConfig.from_hf(tiny.MODELS[kind])).config, data)
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(family | written_fields))
    found = run_config.data_of(tmp_path)
    for name in ("frames", "fps", "min_frames", "max_frames"):
        assert found[name] == data[name]
    for seconds in (3.0, 20.0, 400.0):
        info = VideoInfo(1280, 720, seconds, 25.0, int(25 * seconds))
        ours = fit(Sampling.of(data), info, factor=factor, max_tokens=data.max_tokens or None)
        assert fit(Sampling.of(found), info, factor=factor) == ours


def their_size(kind, fields, factor, count, side):
    """The size of each of ``count`` frames, as in ``resize`` of the family's video processor."""
    least, most = fields["size"]["shortest_edge"], fields["size"]["longest_edge"]
    floor, tokens = int(1.05 * least), fields.get("max_video_tokens", 0)
    if kind == "tied":
        if fields["cap_pixels_per_frame"]:
            most = max(min(most, int(0.9 * tokens * factor**2) * 2 // count), floor)
        return qwen2_5_size(*side, factor, least, most)
    if fields.get("cap_pixels_per_frame"):
        most = count * max(min(tokens * factor**2, most // count), floor)
    return qwen3_size(count, *side, 2, factor, least, most)


@pytest.mark.parametrize("side", [(720, 1280), (100, 60), (1080, 1920)])
@pytest.mark.parametrize("frames, fps", [(16, 0.0), (0, 2.0)])
def test_videos_get_the_size_that_they_had(kind, side, frames, fps):
    """transformers' own rule of the family, given what is written, against the rule of the run. (That of
    Qwen3-VL has no lower limit for each frame where their number is not known.)"""
    data, factor, fields = written(kind, frames=frames, fps=fps, min_pixels=96 * 96, max_pixels=256 * 256)
    assert (fields["num_frames"], fields["fps"]) == (frames or None, fps or None)
    theirs = their_size(kind, fields, factor, frames or 20, side)
    ours = smart_resize(*side, factor=factor, min_pixels=data.min_pixels, max_pixels=data.max_pixels)
    if (kind, side, frames) == ("deep", (100, 60), 0):
        assert theirs == (96, 64) and ours == (128, 96)
    else:
        assert theirs == ours


@pytest.mark.parametrize("side", [(720, 1280), (480, 360)])
@pytest.mark.parametrize("sampling", [dict(frames=60), dict(frames=0, fps=2.0)], ids=["frames", "fps"])
@pytest.mark.parametrize("budget", ["total_pixels", "max_tokens"])
def test_a_budget_holds_there_too(kind, side, sampling, budget):
    """60 frames leave 2,000 / 30 = 66 units to a slot. Theirs are rounded down to whole rows and columns."""
    factor = written(kind)[1]
    fields = dict(min_pixels=16 * factor**2, max_pixels=256 * factor**2, **sampling)
    fields |= dict(total_pixels=2000 * factor**2) if budget == "total_pixels" else dict(max_tokens=2000)
    data, _, fields = written(kind, **fields)
    height, width = their_size(kind, fields, factor, 60, side)
    info = VideoInfo(side[1], side[0], 30.0, 25.0, 750)
    frames, *ours = fit(Sampling.of(data), info, factor=factor, max_tokens=data.max_tokens)
    assert frames == 60 and (fields["min_frames"], fields["max_frames"]) == (4, 768)
    assert 0.8 * np.prod(ours) <= height * width <= np.prod(ours) <= 66 * factor**2


def test_files_that_came_with_the_model_travel_on(workdir, tmp_path):
    """Those of config.init_from, as they are; its license and name stand in the card."""
    run = shutil.copytree(workdir, tmp_path / "run")
    images = {"image_processor_type": "Qwen2VLImageProcessor", "max_pixels": 12845056}
    files = {
        "preprocessor_config.json": json.dumps(images),
        "generation_config.json": '{"repetition_penalty": 1.05}',
        "LICENSE": "terms",
    }
    for name, content in files.items():
        (run / "model" / name).write_text(content)
    (run / "model" / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# Theirs\n")
    config = json.loads((run / "model" / "config.json").read_text())
    (run / "model" / "config.json").write_text(json.dumps(config | {"_name_or_path": "Qwen/Some-VL"}))
    exporting.export(run, tmp_path / "out")
    for name, content in files.items():
        assert (tmp_path / "out" / name).read_text() == content
    card = (tmp_path / "out" / "README.md").read_text()
    assert "\nlicense: apache-2.0\nbase_model: Qwen/Some-VL\n" in card and "Theirs" not in card
    exporting.export(run, tmp_path / "out", base_model="me/mine")
    assert "\nbase_model: me/mine\n" in (tmp_path / "out" / "README.md").read_text()


def test_files_can_be_read_by_others(exported, tmp_path):
    """As any new file can here: some libraries write files that only their owner can read."""
    (tmp_path / "new").touch()
    rights = (tmp_path / "new").stat().st_mode
    assert {file.stat().st_mode for file in exported.iterdir()} == {rights}


def test_weights_keep_the_type_of_the_base(workdir, tmp_path):
    run = shutil.copytree(workdir, tmp_path / "run")
    config = json.loads((run / "model" / "config.json").read_text())
    config.pop("dtype", None)
    (run / "model" / "config.json").write_text(json.dumps(config | {"torch_dtype": "bfloat16"}))
    exporting.export(run, tmp_path / "out")
    assert {x.dtype for x in leaves(hf.load_pretrained(tmp_path / "out")).values()} == {
        jnp.dtype(jnp.bfloat16)
    }


def test_bfloat16(kind, workdir, tmp_path):
    """The check reads it as bfloat16, in which it finds the same numbers; what it compares with transformers
    is float32 (below, for each family)."""
    model = exporting.export(workdir, tmp_path, dtype="bfloat16")
    full, _ = checkpoint.load_model(workdir)
    for name, leaf in leaves(hf.load_pretrained(tmp_path)).items():
        assert leaf.dtype == jnp.bfloat16
        np.testing.assert_array_equal(leaf, leaves(full)[name].astype(jnp.bfloat16))
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    if kind == "tied":
        assert "bit for bit" in check_folder(model, tmp_path)[0]


def test_the_check_sees_damage(workdir, exported, tmp_path):
    model, _ = checkpoint.load_model(workdir)
    lines = check_folder(model, exported)
    assert "bit for bit" in lines[0] and "transformers loads it" in lines[1]
    assert "answers the same about text, an image and a video" in lines[2]
    broken = shutil.copytree(exported, tmp_path / "broken")
    weights = broken / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(UserError, match="other numbers"):
        check_folder(model, broken)


def test_the_card(kind, workdir, exported):
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
    assert "14 frames, evenly spaced" in card and "as_trained(model, processor)" in card
    assert str(workdir.parent) not in card
    (serve,) = [line for line in card.splitlines() if line.startswith("vllm serve")]
    # vLLM gives all frames of a Qwen3-VL video together what this flag gives.
    assert ("--mm-processor-kwargs" in serve) == (kind == "tied") and serve.count("'") % 2 == 0
    code = card.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")


@pytest.mark.parametrize("name, said", [("adamw", "AdamW, "), ("muon", "Muon, and AdamW for what ")])
def test_the_card_names_the_optimizer(kind, workdir, name, said):
    model = abstract_model(VLMConfig.from_hf(tiny.MODELS[kind]))
    config = ConfigDict(run_config.read(workdir))
    config.optim.name = name
    assert f"| optimizer | {said}" in exporting.model_card(workdir, config, model, 3, {})


def test_mistakes_are_named(workdir, exported, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").touch()
    for source, target, step, message in (
        (exported, tmp_path / "o", None, "no run in it"),
        (workdir, tmp_path / "o", 2, "no checkpoint of step 2"),
        (workdir, tmp_path / "taken", None, "something else"),
    ):
        with pytest.raises(UserError, match=message):
            exporting.export(source, target, step=step)
    assert not (tmp_path / "o").exists()
    code, out, err = call(exporting.main, "--out=o")
    assert (code, out) == (2, "") and "--workdir" in err
