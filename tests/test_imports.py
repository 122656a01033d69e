"""Imports go down, every config field is read, every recipe loads."""

import ast
import dataclasses
import graphlib
import importlib
import re
import sys
from pathlib import Path

import pytest

from vpjax.recipes import base

ROOT = Path(__file__).parents[1]
FILES = {str(path.relative_to(ROOT / "vpjax")): path for path in sorted((ROOT / "vpjax").rglob("*.py"))}
# Imports go down: a folder imports from itself and from what stands before it. What is in the root, but for
# types, files and hlo, belongs to the commands.
ORDER = (
    "types hlo",
    "files",
    "models events",
    "data",
    "scoring",
    "training",
    "evaluation building",
    "curation",
    "commands",
)
RANKS = {name: rank for rank, names in enumerate(ORDER) for name in names.split()}


def folder(file: str) -> str:
    name = file.partition("/")[0].removesuffix(".py")
    return name if name in RANKS else "commands"


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


def upward(file: str, others: set[str]) -> set[str]:
    """Those of ``others`` that ``file`` may not import."""
    here = folder(file)
    return {x for x in others if folder(x) != here and RANKS[folder(x)] >= RANKS[here]}


def test_imports_go_down():
    wrong = {file: upward(file, imported(path)) for file, path in FILES.items()}
    assert not {file: files for file, files in wrong.items() if files}


def test_an_import_from_above_is_seen():
    assert {"training/checkpoint.py", "cli.py"} <= imported(FILES["train.py"])
    assert "models/vlm.py" in imported(FILES["training/checkpoint.py"])
    assert upward("data/rows.py", {"training/sft.py", "models/vlm.py", "data/text.py"}) == {"training/sft.py"}
    assert upward("models/vlm.py", {"events/text.py"}) == {"events/text.py"}


def test_no_import_goes_in_a_circle():
    graph = {file: imported(path) for file, path in FILES.items()}
    tuple(graphlib.TopologicalSorter(graph).static_order())


def test_only_commands_touch_flags_clocks_print_and_the_process_index():
    def touched(file: str) -> set[str]:
        tree = list(ast.walk(ast.parse(FILES[file].read_text())))
        names = {node.id for node in tree if isinstance(node, ast.Name)}
        names |= {alias.name for node in tree if isinstance(node, ast.Import) for alias in node.names}
        attributes = {node.attr for node in tree if isinstance(node, ast.Attribute)}
        flags = {name for name in attributes if name.startswith("DEFINE_")}
        return flags | names & {"print", "input", "argparse", "time"} | attributes & {"process_index"}

    assert touched("cli.py") and touched("train.py")
    wrong = {file: touched(file) for file in FILES if folder(file) != "commands"}
    assert not {file: names for file, names in wrong.items() if names}


def test_what_is_imported_is_declared():
    """Each library that the package imports stands in setup.py. tensorflow has an environment of its own."""
    setup = (ROOT / "setup.py").read_text()
    declared = {name.lower() for name in re.findall(r'"([\w-]+)(?:\[\w+\])?[>=]=', setup)}
    named_otherwise = {"PIL": "pillow", "absl": "absl-py", "orbax": "orbax-checkpoint"}
    libraries = set()
    for path in FILES.values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                libraries |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                libraries.add(node.module.partition(".")[0])
    libraries -= sys.stdlib_module_names | {"vpjax", "tensorflow", "tensorflow_io"}
    distributions = {named_otherwise.get(name, name).lower() for name in libraries}
    assert len(distributions) > 20
    missing = {name for name in distributions if not {name, name.replace("_", "-")} & declared}
    assert not missing


def test_every_config_field_is_read():
    """By some ``.field`` in the package. Sections that are handed over whole: the model's config, the specs
    of the built-in clips (below) and the mesh."""
    whole = {"model", "events", "events_heldout", "long", "long_heldout", "mesh"}
    attributes = {
        node.attr
        for file, path in FILES.items()
        if file != "training/config_rules.py"  # which checks values and uses none
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
    from vpjax.events.clips import EventSpec
    from vpjax.events.long import LongSpec

    config = base.get_config()
    for section, spec in ((config.events, EventSpec), (config.long, LongSpec)):
        named = {field.name for field in dataclasses.fields(spec)}
        assert set(section) - {"train", "heldout", "unseen"} <= named


@pytest.mark.parametrize("recipe", [p.stem for p in sorted((ROOT / "configs").glob("[!_]*.py"))])
def test_recipes_only_set_known_fields(recipe):
    config = importlib.import_module(f"vpjax.recipes.{recipe}").get_config()
    known = base.get_config()
    assert set(config) == set(known)
    for section in set(known) - {"model", "events_heldout", "long_heldout"}:
        if hasattr(known[section], "keys"):
            assert set(config[section]) == set(known[section]), section
