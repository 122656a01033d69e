"""The recipe of the tests: two sources, of which one has two files."""

from vpjax.curation.recipe import parse_recipe
from vpjax.recipes.data import vp80k

SOURCE = dict(name="a", files=("one.json",), share=1.0, url="https://a", licence="free", format="captions")


def recipe_of(**changes):
    config = vp80k.get_config()
    config.total = 40
    source = dict(url="https://a", licence="free", format="captions")
    config.sources = (
        dict(name="a", files=("one.json", "two.jsonl"), share=3.0, **source),
        dict(name="b", files=("one.json",), share=1.0, **source),
    )
    config.benchmarks = (dict(name="charades-sta", file="test.json"),)
    config.caps = dict(action=0.1, length=0.8, edges=(1.0, 2.5), video=1)
    config.update(changes)
    return parse_recipe(config)
