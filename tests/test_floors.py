"""The house stands: imports go down, every config field is read, every recipe loads."""

import ast
import dataclasses
import importlib
import re
from pathlib import Path

import pytest

from configs import base

ROOT = Path(__file__).parents[1]
FILES = {str(path.relative_to(ROOT / "vpjax")): path for path in sorted((ROOT / "vpjax").rglob("*.py"))}
# A file imports only from its own floor and those below.
FLOORS = (
    r"__init__.py|.*/__init__.py|types.py|ops/.*",
    r"sharding.py|compiled.py|models/.*|data/.*|losses.py|relative.py|policy.py|rewards/.*"
    r"|evaluation/(answers|scores|intervals).py",
    r"state.py|update.py|checkpoint.py|settings.py|generate.py|writer.py|evaluation/likelihood.py",
    r"sft.py|grpo.py|judging.py|start.py|exporting.py|building/.*|evaluation/.*",
    r"cli.py|processes.py|planning.py|train.py|predict.py|build.py|evaluate.py|export.py|plan.py",
)


def floor(file: str) -> int:
    return next(number for number, files in enumerate(FLOORS) if re.fullmatch(files, file))


def imported(path: Path) -> set[str]:
    """The files of vpjax that ``path`` imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name.removeprefix("vpjax.").replace(".", "/") + ".py" for name in names} & set(FILES)


@pytest.mark.parametrize("file", FILES)
def test_imports_go_down(file):
    above = {other for other in imported(FILES[file]) if floor(other) > floor(file)}
    assert not above, f"{file} (floor {floor(file)}) imports from above: {above}"


def test_imports_are_seen():
    # Guards the test above: it sees imports at the top of a file and of modules from packages.
    assert {"checkpoint.py", "cli.py", "writer.py"} <= imported(FILES["train.py"])
    assert "models/vlm.py" in imported(FILES["checkpoint.py"])


@pytest.mark.parametrize("file", [file for file in FILES if floor(file) < 4])
def test_flags_and_print_live_upstairs(file):
    tree = ast.parse(FILES[file].read_text())
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    used |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert not used & {"print", "input", "argparse", "time"}
    defined = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not [name for name in defined if name.startswith("DEFINE_")] and "process_index" not in defined


def test_every_config_field_is_read():
    """By some ``.field`` in the package. Sections that are handed over whole: the model's config, the spec of
    the event clips (below) and the mesh."""
    whole = {"model", "events", "mesh"}
    attributes = {
        node.attr
        for file, path in FILES.items()
        if file != "settings.py"  # which checks values and uses none
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    config = base.get_config()
    fields = {
        f"{name}.{field}" if field else name
        for name, section in config.items()
        for field in (section if hasattr(section, "keys") and name not in whole else ("",))
    }
    unread = {field for field in fields if field.rpartition(".")[2] not in attributes}
    assert not unread


def test_event_fields_are_the_spec():
    from vpjax.data.events import EventSpec

    assert set(base.get_config().events) - {"train", "heldout", "unseen"} <= {
        field.name for field in dataclasses.fields(EventSpec)
    }


@pytest.mark.parametrize("recipe", [p.stem for p in sorted((ROOT / "configs").glob("[!_]*.py"))])
def test_recipes_only_set_known_fields(recipe):
    config = importlib.import_module(f"configs.{recipe}").get_config()
    known = base.get_config()
    assert set(config) == set(known)
    for section in set(known) - {"model"}:
        if hasattr(known[section], "keys"):
            assert set(config[section]) == set(known[section]), section
