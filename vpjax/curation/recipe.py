"""A recipe of a data set: which rows of which public sources are chosen, and why.

A recipe is a file with ``get_config()``, as those of runs are; ``configs/data/vp80k.py`` explains the fields.
"""

import dataclasses
import importlib.resources
import itertools
import math
import runpy
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from ml_collections import ConfigDict

from vpjax.curation.measures import STAGES, stage_of
from vpjax.curation.published import READERS
from vpjax.evaluation.benchmarks import BENCHMARKS
from vpjax.types import UserError

RECIPES = "vpjax.recipes.data"  # the package that the folder configs/data/ is installed as
Record = TypeVar("Record")


@dataclasses.dataclass(frozen=True)
class Source:
    """A public data set. name: of its folder below the folder of all sources, too. files: its annotation
    files in that folder. format: see ``curation.published.READERS``; "": as detected. videos: the folder of
    its videos, likewise. share: of the rows that are chosen, relative to the other sources' shares.
    instruction: text after every question in training. url, licence: where a user gets it, and on what
    terms."""

    name: str
    files: tuple[str, ...]
    share: float
    url: str
    licence: str
    format: str = ""
    videos: str = "videos"
    instruction: str = ""


@dataclasses.dataclass(frozen=True)
class Filter:
    """A row stays if its ``measure`` is a number from ``least`` to ``most``, or none at all (NaN: it does not
    apply to the row). reason: why the other rows are dropped, for the report."""

    measure: str
    reason: str
    least: float = -math.inf
    most: float = math.inf

    def keeps(self, value: float) -> bool:
        return math.isnan(value) or self.least <= value <= self.most

    @property
    def rule(self) -> str:
        """Its limits in words."""
        limits = [f"at least {self.least:g}"] if self.least > -math.inf else []
        limits += [f"at most {self.most:g}"] if self.most < math.inf else []
        return f"{self.measure} {' and '.join(limits)}"


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A benchmark whose rows must not be chosen. name: one of ``vpjax.evaluate``. file: its annotations, in
    the folder of all sources."""

    name: str
    file: str


@dataclasses.dataclass(frozen=True)
class Caps:
    """The most rows of one kind. action: of one action, as a share of all. edges: seconds that part the
    lengths of events, and length: the largest share of all from one edge to the next. video: rows of one
    video."""

    action: float
    length: float
    video: int
    edges: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class General:
    """A file of clips of other kinds, which keeps a model's other skills. share: of an epoch's clips."""

    file: str
    share: float
    instruction: str = ""
    videos: str = ""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """total: the rows that are chosen. seed: of the draw. oversample: rows whose videos are examined, for
    each that is chosen, because some fail the filters of videos."""

    total: int
    seed: int
    oversample: float
    sources: tuple[Source, ...]
    filters: tuple[Filter, ...]
    benchmarks: tuple[Benchmark, ...]
    caps: Caps
    general: tuple[General, ...]

    def filters_at(self, stage: str) -> tuple[Filter, ...]:
        return tuple(x for x in self.filters if stage_of(x.measure) == stage)

    def has(self, measure: str) -> bool:
        return any(x.measure == measure for x in self.filters)

    @property
    def shares(self) -> dict[str, float]:
        """The share of each source in the rows that are chosen; they sum to 1."""
        total = sum(source.share for source in self.sources)
        return {source.name: source.share / total for source in self.sources}

    def places(self, total: int) -> dict[str, int]:
        """How many of ``total`` rows each source may give; they sum to it."""
        shares = itertools.accumulate(self.shares.values(), initial=0.0)
        counts = [round(end * total) - round(start * total) for start, end in itertools.pairwise(shares)]
        return dict(zip(self.shares, counts, strict=True))

    def rows_made_from(self) -> dict[str, Any]:
        """What of the recipe the judgement of a row depends on, by name. The rest may change later."""
        return {
            "filters of rows": [(x.measure, x.least, x.most) for x in self.filters_at("row")],
            "benchmarks": [dataclasses.astuple(benchmark) for benchmark in self.benchmarks],
            "seed": self.seed,
            "filters of copies": self.has("caption_copy"),
        }

    def of(self, names: Collection[str]) -> "Recipe":
        """The recipe with some of its sources, which share the places of the others. UserError for an
        unknown one."""
        known = {source.name: source for source in self.sources}
        if unknown := sorted(set(names) - set(known)):
            raise UserError(f"--sources: the recipe has no {unknown[0]!r}; it has {', '.join(known)}")
        return dataclasses.replace(self, sources=tuple(known[name] for name in known if name in names))


def load_recipe(name: str) -> Recipe:
    """The recipe in a file, or one that vpjax ships. UserError if there is none, or a wrong one."""
    file = Path(name)
    if not file.is_file():
        shipped = Path(str(importlib.resources.files(RECIPES)))
        file = shipped / f"{name}.py"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in shipped.glob("[!_]*.py")))
        raise UserError(f"--recipe: there is no file {name!r} and no recipe of that name; recipes: {known}")
    try:
        config = runpy.run_path(str(file))["get_config"]()
    except Exception as error:  # whatever the user's code raises
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"{file}: {reason}; a recipe is a Python file with get_config()") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{file}: get_config() returns {config!r}, which is no ConfigDict")
    try:
        return parse_recipe(config)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def parse_recipe(config: ConfigDict) -> Recipe:
    """The recipe of a config. UserError that names the field which is wrong."""
    values = {name: value for name, value in config.items()}
    values["sources"] = _records(values, "sources", Source)
    values["filters"] = _records(values, "filters", Filter)
    values["benchmarks"] = _records(values, "benchmarks", Benchmark)
    values["general"] = _records(values, "general", General)
    values["caps"] = _record("caps", values.get("caps") or {}, Caps)
    recipe = _record("recipe", values, Recipe)
    _check(recipe)
    return recipe


def _records(values: Mapping[str, Any], field: str, kind: type[Record]) -> tuple[Record, ...]:
    given = values.get(field) or ()
    if not isinstance(given, list | tuple):
        raise UserError(f"{field}: give a tuple; one of a single element ends with a comma")
    return tuple(_record(f"{field}[{number}]", value, kind) for number, value in enumerate(given))


def _record(field: str, value: Any, kind: type[Record]) -> Record:
    if not isinstance(value, Mapping | ConfigDict):
        raise UserError(f"{field}: {value!r} is no dict of {', '.join(kind.__annotations__)}")
    fields = {key: tuple(x) if isinstance(x, list) else x for key, x in value.items()}
    for key, x in fields.items():
        wanted = kind.__annotations__.get(key, object)
        if not _is_of(x, wanted):
            name = wanted.__name__ if isinstance(wanted, type) else wanted
            raise UserError(f"{field}: {key} is {x!r}, not of {name}")
    try:
        return kind(**fields)
    except TypeError as error:
        raise UserError(f"{field}: {str(error).partition('() ')[2]}") from error


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a value is of the type of a field: str, int, float (a number), a record, or a tuple of one of
    them."""
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is_of(x, get_args(kind)[0]) for x in value)
    if kind is float:
        return type(value) in (int, float) and not math.isnan(value)
    return type(value) is kind if kind in (int, str) else isinstance(value, kind)


def _check(recipe: Recipe) -> None:
    def require(holds: bool, problem: str) -> None:
        if not holds:
            raise UserError(problem)

    names = [source.name for source in recipe.sources]
    require(bool(names) and len(set(names)) == len(names), f"sources: {names}: give each a name of its own")
    for source in recipe.sources:
        require(0 < source.share < math.inf, f"source {source.name}: share must be above 0, and finite")
        require(bool(source.files), f"source {source.name}: files names no file")
        formats = ", ".join(READERS)
        require(source.format in ("", *READERS), f"source {source.name}: format is none of {formats}")
    stages = [stage_of(x.measure) for x in recipe.filters]
    for number, (filter, stage) in enumerate(zip(recipe.filters, stages, strict=True)):
        require(stage in STAGES, f"filters[{number}]: there is no measure {filter.measure!r}")
        require(filter.least <= filter.most, f"filters[{number}]: least is above most")
    require(
        stages == sorted(stages, key=STAGES.index),
        f"filters: those of {STAGES[0]}, of {STAGES[1]} and of {STAGES[2]} come in this order",
    )
    for benchmark in recipe.benchmarks:
        require(benchmark.name in BENCHMARKS, f"benchmarks: {benchmark.name} is none of vpjax.evaluate's")
    require(recipe.total > 0 and recipe.oversample >= 1, "total must be above 0 and oversample at least 1")
    caps = recipe.caps
    require(0 < caps.action <= 1 and 0 < caps.length <= 1, "caps: action and length are shares above 0")
    require(caps.video >= 1, "caps.video must be at least 1")
    require(list(caps.edges) == sorted(set(caps.edges)), "caps.edges must rise")
    shares = [general.share for general in recipe.general]
    require(sum(shares) < 1 and min(shares, default=0) >= 0, "general: the shares must sum to less than 1")
