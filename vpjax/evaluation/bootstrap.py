"""Means of scores over answers, per group and over groups. Their intervals come from a bootstrap over videos,
because several answers may be about one video. Where all answers have the best score, or all the worst, every
resample is the same, and the interval is that of Clopper and Pearson (1934) for the number of videos."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95
SCORES = 0.0, 1.0  # the worst and the best value of a metric
DIFFERENCES = -1.0, 1.0


class Scored(NamedTuple):
    """The scores of one prediction. group, second_group: means are also taken by these; "": no second group.
    readable: whether the answer could be read. values: by metric, without those that do not apply to it.
    named: the events that the answer to a question about events names; None for other questions."""

    id: str
    video: str
    group: str
    control: str
    readable: bool
    values: dict[str, float]
    second_group: str = ""
    named: Sequence[str] | None = None


def summary(rows: Sequence[Scored], bounds: tuple[float, float] = SCORES) -> dict[str, Any]:
    """The means of one control's rows, ready for JSON:

    rows, videos: their numbers. readable: a share. metrics: name -> micro, the mean over the rows that have
    it; macro, the mean over groups; groups and, if rows have them, second_groups: name -> the mean of its
    rows. Each mean is {"mean", "low", "high"}; those of groups have "rows" too.

    bounds: between which the metrics' means lie.
    """
    metrics = {}
    for name in dict.fromkeys(name for row in rows for name in row.values):
        scored = [row for row in rows if name in row.values]
        metrics[name] = _means(name, scored, bounds)
        regrouped = [row._replace(group=row.second_group) for row in scored if row.second_group]
        if regrouped:
            metrics[name]["second_groups"] = _means(name, regrouped, bounds)["groups"]
    return {
        "rows": len(rows),
        "videos": len({row.video for row in rows}),
        "readable": float(np.mean([row.readable for row in rows])),
        "metrics": metrics,
    }


def difference(ours: Sequence[Scored], theirs: Sequence[Scored], *, mean: str = "micro") -> dict[str, Any]:
    """Ours minus theirs on the rows of one control that both sides have: rows, videos, unmatched, and
    metrics: name -> {"mean", "low", "high"}, for the metrics that both sides have. mean: over rows ("micro")
    or over groups ("macro")."""
    theirs_by_id = {row.id: row for row in theirs}
    gains = []
    for row in ours:
        if row.id in theirs_by_id:
            other = theirs_by_id[row.id].values
            values = {name: value - other[name] for name, value in row.values.items() if name in other}
            gains.append(Scored(row.id, row.video, row.group, row.control, row.readable, values))
    means: dict[str, Any] = summary(gains, DIFFERENCES) if gains else {"videos": 0, "metrics": {}}
    return {
        "rows": len(gains),
        "videos": means["videos"],
        "unmatched": len(ours) + len(theirs) - 2 * len(gains),
        "metrics": {name: kinds[mean] for name, kinds in means["metrics"].items()},
    }


def _means(metric: str, rows: Sequence[Scored], bounds: tuple[float, float]) -> dict[str, Any]:
    """The mean of a metric over rows and over groups, and that of each group."""
    videos, video = np.unique([row.video for row in rows], return_inverse=True)
    groups, group = np.unique([row.group for row in rows], return_inverse=True)
    estimate = functools.partial(_estimate, weights_RV=_weights(len(videos)), bounds=bounds)
    values = np.array([row.values[metric] for row in rows])
    sums_VG, counts_VG = _totals(values, video, group)
    total_V1, count_V1 = sums_VG.sum(1, keepdims=True), counts_VG.sum(1, keepdims=True)
    return {
        "micro": estimate(total_V1, count_V1),
        "macro": estimate(sums_VG, counts_VG),
        "groups": {
            group: estimate(sums_VG[:, [g]], counts_VG[:, [g]]) | {"rows": int(counts_VG[:, g].sum())}
            for g, group in enumerate(groups.tolist())
        },
    }


def _totals(values: np.ndarray, video: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sums and the counts f64[V, G] of the rows' values by video and group."""
    shape = video.max() + 1, group.max() + 1
    sums_VG, counts_VG = np.zeros(shape), np.zeros(shape)
    np.add.at(sums_VG, (video, group), values)
    np.add.at(counts_VG, (video, group), 1)
    return sums_VG, counts_VG


def _weights(videos: int) -> np.ndarray:
    """How often each video is drawn in each resample, f64[R, V]: the bootstrap over videos (Efron 1979)."""
    draws = np.random.default_rng(0).multinomial(videos, np.full(videos, 1 / videos), RESAMPLES)
    return draws.astype(np.float64)


def _estimate(
    sums_VG: np.ndarray, counts_VG: np.ndarray, weights_RV: np.ndarray, bounds: tuple[float, float]
) -> dict[str, float | None]:
    """The mean of the groups' means, and its percentiles over the resamples. A resample that lacks a group
    uses the groups that it has. One video gives no interval."""
    mean = float(np.mean(sums_VG.sum(0) / counts_VG.sum(0)))
    if np.count_nonzero(counts_VG.sum(1)) < 2:
        return {"mean": mean, "low": None, "high": None}
    counts_RG = weights_RV @ counts_VG
    means_RG = np.divide(
        weights_RV @ sums_VG, counts_RG, where=counts_RG > 0, out=np.full(counts_RG.shape, np.nan)
    )
    drawn = means_RG[(counts_RG > 0).any(1)]
    low, high = np.quantile(np.nanmean(drawn, axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    worst, best = bounds
    inward = (best - worst) * _most_others(np.count_nonzero(counts_VG, axis=0))
    if np.isclose(mean, best):
        low = best - inward
    elif np.isclose(mean, worst):
        high = worst + inward
    return {"mean": mean, "low": float(low), "high": float(high)}


def _most_others(videos_G: np.ndarray) -> float:
    """The largest share of other videos that is compatible with having seen none (Clopper and Pearson). It
    bounds how far the mean may be from the best or the worst value, whatever the scores in between.

    videos: their number in each group. A mean over groups counts as that number of videos whose mean has
    the same variance (Kish 1965)."""
    independent = len(videos_G) ** 2 / np.sum(1 / videos_G)
    return 1 - ((1 - LEVEL) / 2) ** (1 / independent)
