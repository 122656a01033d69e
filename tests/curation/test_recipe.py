"""Recipes of curations: their places, and whatever is wrong with one is named."""

import dataclasses
import math

import pytest

from tests.curation.recipes import SOURCE, recipe_of
from vpjax.curation import funnel
from vpjax.curation.recipe import load_recipe, parse_recipe
from vpjax.recipes.data import vp80k
from vpjax.types import UserError


@pytest.mark.parametrize("total", [1, 2, 12, 40, 999, 80_000])
def test_the_places_of_all_sources_are_the_total(total):
    """Also where the shares' own rounding would give more, as 13 of 12."""
    recipe = dataclasses.replace(parse_recipe(vp80k.get_config()), total=total)
    places = recipe.places(total)
    assert sum(places.values()) == total and list(places) == list(recipe.shares)
    assert all(abs(places[name] - share * total) <= 1 for name, share in recipe.shares.items())
    assert sum(funnel.summarize(NoRows(), recipe)["wanted"].values()) == total


class NoRows:
    def counts(self):
        return {}


def test_sources_share_the_places_of_those_that_are_left_out():
    recipe = recipe_of().of(["b"])
    assert recipe.shares == {"b": 1.0}
    with pytest.raises(UserError, match="--sources: the recipe has no 'c'; it has a, b"):
        recipe_of().of(["c"])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"total": 0}, "total must be above 0"),
        ({"filters": (dict(measure="nope", reason=""),)}, r"filters\[0\]: there is no measure 'nope'"),
        ({"filters": (dict(measure="words"),)}, r"filters\[0\]: .*missing .*'reason'"),
        (
            {"filters": (dict(measure="peak", reason=""), dict(measure="words", reason=""))},
            "filters: those of row, of copies and of video come in this order",
        ),
        ({"benchmarks": (dict(name="nope", file="a"),)}, "nope is none of vpjax.evaluate's"),
        ({"caps": dict(action=0.0, length=0.5, edges=(1.0,), video=1)}, "caps: action and length are shares"),
        ({"caps": dict(action=0.1, length=0.5, edges=(2.0, 1.0), video=1)}, "caps.edges must rise"),
        ({"general": (dict(file="a", share=1.0),)}, "general: the shares must sum to less than 1"),
        ({"more": 1}, "recipe: .*unexpected keyword argument 'more'"),
        # Files that lack their comma are no letters, and numbers are numbers.
        ({"sources": (SOURCE | dict(files="one.json"),)}, r"sources\[0\]: files is 'one.json', not of tuple"),
        ({"sources": (SOURCE | dict(share=math.inf),)}, "source a: share must be above 0, and finite"),
        (
            {"filters": (dict(measure="words", reason="", least="2"),)},
            r"filters\[0\]: least is '2', not of fl",
        ),
        ({"filters": (dict(measure="words", reason="", most=math.nan),)}, r"filters\[0\]: most is nan"),
        (
            {"caps": dict(action=0.1, length=0.5, edges=(1.0, math.nan), video=1)},
            r"caps: edges is \(1.0, nan",
        ),
        ({"general": ("a.jsonl",)}, r"general\[0\]: 'a.jsonl' is no dict of file, share"),
        (
            {"general": (dict(file="a", share=-0.5), dict(file="b", share=0.6))},
            "general: the shares must sum",
        ),
    ],
)
def test_wrong_recipes_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        recipe_of(**changes)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("x = (", "SyntaxError"),
        ("x = 1", "KeyError: 'get_config'"),
        ("def get_config():\n    c = vp80k", "NameError: name 'vp80k' is not defined"),
        ("def get_config():\n    return {}", "returns {}, which is no ConfigDict"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_named(tmp_path, text, reason):
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(UserError, match=f"own.py: .*{reason}") as error:
        load_recipe(str(tmp_path / "own.py"))
    assert "\n" not in str(error.value)


def test_the_recipe_that_is_shipped_is_right_and_found():
    recipe = load_recipe("vp80k")
    assert recipe == parse_recipe(vp80k.get_config()) and recipe.total == 80_000
    assert all(x.reason and x.rule for x in recipe.filters)
    assert all(source.url and source.licence for source in recipe.sources)
    with pytest.raises(UserError, match="--recipe: there is no file 'nope'"):
        load_recipe("nope")
    assert dataclasses.replace(recipe, total=1).rows_made_from() == recipe.rows_made_from()
