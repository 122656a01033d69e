"""Where an export may write, and what a folder has after it, whatever was there and came with the model."""

import json
import shutil

import pytest

from tests import runs
from vpjax import export as exporting
from vpjax.data.processors import IMAGE_PROCESSOR, NESTED, VIDEO_PROCESSOR
from vpjax.evaluation.exported import check_folder
from vpjax.models import hf
from vpjax.predict import load
from vpjax.types import UserError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return runs.make_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def run(workdir, tmp_path):
    return shutil.copytree(workdir, tmp_path / "run")


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_only_an_export_is_written_over(run, tmp_path):
    """Not the run itself, and not another model's folder, though both have a config.json."""
    base = tmp_path / "base"
    hf.save_pretrained(hf.load_pretrained(exported(run, tmp_path / "out")), base)
    for folder in (run, run / "model", base):
        before = contents(folder)
        with pytest.raises(UserError, match=f"--out={folder}: has files of something else"):
            exporting.export(run, folder)
        assert contents(folder) == before


def exported(run, out):
    exporting.export(run, out)
    return out


def test_an_export_that_was_interrupted_is_done_again(run, tmp_path, monkeypatch):
    """Here between the weights and the config."""

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(hf, "write_json_file", stop)
        with pytest.raises(KeyboardInterrupt):
            exporting.export(run, tmp_path / "out")
    assert (tmp_path / "out" / hf.WEIGHTS).is_file()
    again = {path.name: x for path, x in contents(exported(run, tmp_path / "out")).items()}
    assert again == {path.name: x for path, x in contents(exported(run, tmp_path / "other")).items()}


def test_nothing_is_left_of_an_earlier_export(run, tmp_path):
    """Of another run, whose base model had more files, and other sizes in them."""
    other = shutil.copytree(run, tmp_path / "other")
    files = {
        "generation_config.json": {"repetition_penalty": 1.05},
        "added_tokens.json": {},
        IMAGE_PROCESSOR: {"max_pixels": 12845056},
        VIDEO_PROCESSOR: {"do_sample_frames": False},
    }
    for name, fields in files.items():
        (other / "model" / name).write_text(json.dumps(fields))
    exporting.export(other, tmp_path / "out")
    assert all((tmp_path / "out" / name).is_file() for name in files)
    again = {path.name: x for path, x in contents(exported(run, tmp_path / "out")).items()}
    assert again == {path.name: x for path, x in contents(exported(run, tmp_path / "new")).items()}


def test_processors_that_came_nested_get_the_sizes_of_the_run(run, tmp_path):
    """transformers 5 saves both in processor_config.json, and reads no other file where they are there."""
    from transformers.video_processing_utils import BaseVideoProcessor

    nested = {
        "image_processor": {"max_pixels": 12845056},
        "video_processor": {"fps": 2, "return_metadata": False},
    }
    (run / "model" / NESTED).write_text(json.dumps({"processor_class": "P"} | nested))
    out = exported(run, tmp_path / "out")
    videos, _ = BaseVideoProcessor.get_video_processor_dict(out)
    assert (videos["num_frames"], videos["fps"], videos["return_metadata"]) == (runs.FRAMES, None, False)
    assert json.loads((out / IMAGE_PROCESSOR).read_text()) == nested["image_processor"]
    assert json.loads((out / NESTED).read_text()) == {"processor_class": "P"}
    assert load(out).data_config.frames == runs.FRAMES


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_the_type_of_the_base_may_be_in_its_text_config(run, tmp_path, name):
    """As in Qwen3-VL's folders on the hub."""
    raw = json.loads((run / "model/config.json").read_text())
    for section in (raw, *(part for part in raw.values() if isinstance(part, dict))):
        section.pop("dtype", None)
    raw["text_config"][name] = "bfloat16"
    (run / "model/config.json").write_text(json.dumps(raw))
    config = json.loads((exported(run, tmp_path / "out") / "config.json").read_text())
    assert config["dtype"] == config["text_config"][name] == "bfloat16"
    assert {tensor.dtype for tensor in hf.read_header(tmp_path / "out" / hf.WEIGHTS)} == {"BF16"}


def test_the_check_leaves_out_what_the_base_adds_to_greedy_answers(run, tmp_path):
    """Qwen2.5-VL's own folder asks for a penalty of repetitions, with which other tokens are likeliest."""
    added = {"do_sample": True, "repetition_penalty": 5.0, "temperature": 0.1}
    # As transformers 5 writes them for any model; they change no answer.
    added |= {"_from_model_config": True, "use_cache": False, "output_attentions": False}
    (run / "model/generation_config.json").write_text(json.dumps(added | {"eos_token_id": [0]}))
    model = exporting.export(run, tmp_path / "out")
    lines = check_folder(model, tmp_path / "out")
    assert lines[-1].endswith("its generation_config.json adds: repetition_penalty, temperature")


def test_a_license_of_its_own_keeps_its_name(run, tmp_path):
    """As Qwen2.5-VL-3B's, unless another one is given."""
    fields = ["license: other", "license_name: qwen-research", "license_link: https://example.org/LICENSE"]
    (run / "model/README.md").write_text("\n".join(["---", *fields, "---", "# Theirs", ""]))

    def header(**options):
        exporting.export(run, tmp_path / "out", **options)
        lines = (tmp_path / "out/README.md").read_text().split("---")[1].splitlines()
        return [line for line in lines if line.startswith("license")]

    assert header() == fields
    assert header(license="mit") == ["license: mit"]
