"""The documentation names only files, functions and config fields that exist."""

import ast
import re
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from vpjax.recipes import base

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/accuracy_and_speed.md",
    "docs/curation.md",
    "docs/data.md",
    "docs/faults.md",
    "docs/long.md",
    "docs/method.md",
    "docs/results.md",
    "docs/training.md",
)
LINKED = (*PAGES, "docs/rewards.md", "CHANGELOG.md", "launch/README.md")


def defined(path: Path) -> set[str]:
    """The names that the top level of a Python file defines."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


def missing_functions(text: str) -> list[str]:
    """References of the form `folder/file.py:name` to something that vpjax does not define."""
    return [
        f"{file}:{name}"
        for file, name in re.findall(r"`([\w/]+\.py):(\w+)`", text)
        if not (ROOT / "vpjax" / file).is_file() or name not in defined(ROOT / "vpjax" / file)
    ]


def missing_fields(text: str, config: ConfigDict) -> list[str]:
    """References of the form `section.field` to a field that the config lacks."""
    sections = [name for name, value in config.items() if isinstance(value, ConfigDict) and name != "model"]
    known = config.to_dict()
    missing = []
    for field in re.findall(rf"`((?:{'|'.join(sections)})(?:\.\w+)+)`", text):
        value = known
        for part in field.split("."):
            if not isinstance(value, dict) or part not in value:
                missing.append(field)
                break
            value = value[part]
    return missing


@pytest.mark.parametrize("page", PAGES)
def test_functions_and_fields_exist(page):
    text = (ROOT / page).read_text()
    assert not missing_functions(text)
    assert not missing_fields(text, base.get_config())


def test_wrong_names_are_found():
    functions = "`training/losses.py:contrast` `nowhere.py:x` `training/losses.py:contrastive`"
    assert missing_functions(functions) == ["training/losses.py:contrast", "nowhere.py:x"]
    assert missing_fields("`grpo.relative.w1` `grpo.eps_low`", base.get_config()) == ["grpo.relative.w1"]


def headings(path: Path) -> set[str]:
    """The names under which links reach the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", LINKED)
def test_links_lead_to_files_and_headings(page):
    links = re.findall(r"\]\(([^)#]+)(?:#([^)]+))?\)", (ROOT / page).read_text())
    files = [((ROOT / page).parent / link, part) for link, part in links if not link.startswith("http")]
    assert not [str(path) for path, _ in files if not path.exists()]
    assert not [(path.name, part) for path, part in files if part and part not in headings(path)]
