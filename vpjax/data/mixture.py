"""The data sets of a run: one file of clips, or several that are mixed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vpjax.types import UserError

EVENTS = "events"  # stands for the built-in clips
LONG = "events.long"  # likewise, for the long ones
BUILT_IN = (EVENTS, LONG)


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A data set of a mixture. weight: how often each of its clips comes in an epoch; of a weight of 0.5, a
    random half of them. instruction: text after every question. videos: see ``data.videos``."""

    file: str
    name: str
    weight: float = 1.0
    instruction: str = ""
    videos: str = ""


def data_sets(data_config: ConfigDict) -> list[DataSet]:
    """The data sets of ``data.train``. UserError, naming the field, for an invalid one."""
    train = data_config.train
    if not isinstance(train, list | tuple):
        train = [train]
    fields = [field.name for field in dataclasses.fields(DataSet)]
    found: list[DataSet] = []
    for number, given in enumerate(train):
        values: dict[str, Any] = dict(given) if isinstance(given, Mapping | ConfigDict) else dict(file=given)
        texts = [value for field, value in values.items() if field != "weight"]
        are_texts = all(isinstance(value, str) for value in texts)
        if not values.get("file") or not set(values) <= set(fields) or not are_texts:
            raise UserError(
                f"data.train[{number}] is {values}: give file, and any of {', '.join(fields[1:])}, as texts "
                "but for weight, a number"
            )
        values.setdefault("name", PurePath(values["file"]).stem)
        values.setdefault("videos", data_config.videos)
        weight = values.get("weight", 1.0)
        if not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise UserError(f"data.train[{number}]: weight={weight!r}: set it to a number above 0")
        found.append(DataSet(**values))
    names = [data_set.name for data_set in found]
    if not found or len(set(names)) < len(names):
        raise UserError(
            f"data.train has the data sets {names}: give at least one, and each a name of its own"
        )
    return found


class Mixture:
    """The order of the entries of several data sets in each epoch, a pure function of the seed and the epoch.

    data_set_of: the data set of each entry. weights: how often the entries of each data set come in an epoch;
    of the fraction of a weight, a random share of them comes once more. seed: of the order. UserError if a
    weight leaves nothing of its data set.
    """

    def __init__(self, data_set_of: Sequence[int], weights: Sequence[float], seed: int):
        self.data_set_of, self.weights, self.seed = np.array(data_set_of), tuple(weights), seed
        for number, weight in enumerate(self.weights):
            count = int((self.data_set_of == number).sum())
            if count and not round(weight * count):
                raise UserError(
                    f"data.train[{number}]: weight={weight:g} takes none of {count} clips; raise it"
                )

    def rng(self, epoch: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, epoch))

    def order(self, rng: np.random.Generator) -> np.ndarray:
        """The entries of an epoch in random order, i64[n]; n is the same in every epoch."""
        chosen = []
        for number, weight in enumerate(self.weights):
            entries = np.flatnonzero(self.data_set_of == number)
            more = round((weight - int(weight)) * len(entries))
            chosen += [entries] * int(weight) + [rng.permutation(entries)[:more]]
        return rng.permutation(np.concatenate(chosen))
