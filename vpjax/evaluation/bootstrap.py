"""Means over answers: over all, per group, over groups, with intervals that respect that several answers may
be about one video."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95


class Scored(NamedTuple):
    """An answer's row: values by metric, each from 0 to 1. readable: whether the answer could be read."""

    id: str
    video: str
    group: str
    control: str
    readable: bool
    values: dict[str, float]


def summary(rows: Sequence[Scored]) -> dict[str, Any]:
    """The means of one control's rows, ready for JSON:

    rows, videos: how many. readable: share. metrics: name -> micro, the mean over rows; macro, the mean over
    groups; groups, name -> the mean of its rows. Each is {"mean", "low", "high"}, the groups with "rows" too.
    """
    groups, videos, group, video = _codes(rows)
    counts_VG = _totals(np.ones(len(rows)), video, group, len(videos), len(groups))
    weights_RV = _weights(len(videos))
    metrics = {}
    for name in rows[0].values:
        values = np.array([row.values[name] for row in rows])
        sums_VG = _totals(values, video, group, len(videos), len(groups))
        per_group = [
            _estimate(sums_VG[:, [g]], counts_VG[:, [g]], weights_RV) | {"rows": int(counts_VG[:, g].sum())}
            for g in range(len(groups))
        ]
        metrics[name] = {
            "micro": _estimate(sums_VG.sum(1, keepdims=True), counts_VG.sum(1, keepdims=True), weights_RV),
            "macro": _estimate(sums_VG, counts_VG, weights_RV),
            "groups": dict(zip(groups, per_group, strict=True)),
        }
    return {
        "rows": len(rows),
        "videos": len(videos),
        "readable": float(np.mean([row.readable for row in rows])),
        "metrics": metrics,
    }


def difference(ours: Sequence[Scored], theirs: Sequence[Scored]) -> dict[str, Any]:
    """Ours minus theirs over the rows, of one control, that both have: rows, videos, unmatched, and metrics:
    name -> {"mean", "low", "high"} of the mean over rows. None of a metric that only one side has."""
    other = {row.id: row for row in theirs}
    pairs = [(row, other[row.id]) for row in ours if row.id in other]
    unmatched = len(ours) + len(theirs) - 2 * len(pairs)
    if not pairs:
        return {"rows": 0, "videos": 0, "unmatched": unmatched, "metrics": {}}
    _, videos, _, video = _codes([row for row, _ in pairs])
    counts_V1 = _totals(np.ones(len(pairs)), video, 0 * video, len(videos), 1)
    weights_RV = _weights(len(videos))
    metrics = {}
    for name in pairs[0][0].values:
        if name in pairs[0][1].values:
            gains = np.array([a.values[name] - b.values[name] for a, b in pairs])
            sums_V1 = _totals(gains, video, 0 * video, len(videos), 1)
            metrics[name] = _estimate(sums_V1, counts_V1, weights_RV)
    return {"rows": len(pairs), "videos": len(videos), "unmatched": unmatched, "metrics": metrics}


def _codes(rows: Sequence[Scored]) -> tuple[list[str], list[str], np.ndarray, np.ndarray]:
    """The groups and the videos, sorted, and of each row the numbers of its group and of its video."""
    groups, group = np.unique([row.group for row in rows], return_inverse=True)
    videos, video = np.unique([row.video for row in rows], return_inverse=True)
    return groups.tolist(), videos.tolist(), group, video


def _totals(values: np.ndarray, video: np.ndarray, group: np.ndarray, videos: int, groups: int) -> np.ndarray:
    """Sums f64[V, G] of the rows' values by video and group."""
    cells = np.bincount(video * groups + group, values, minlength=videos * groups)
    return cells.reshape(videos, groups)


def _weights(videos: int) -> np.ndarray:
    """How often each video is drawn in each resample, f64[R, V]: the bootstrap over videos (Efron 1979)."""
    draws = np.random.default_rng(0).multinomial(videos, np.full(videos, 1 / videos), RESAMPLES)
    return draws.astype(np.float64)


def _estimate(sums_VG: np.ndarray, counts_VG: np.ndarray, weights_RV: np.ndarray) -> dict[str, float | None]:
    """The mean over groups of their means, and the percentiles of the same in the resamples; of a resample
    that lacks a group, over those that it has. One video gives no interval."""
    mean = float(np.mean(sums_VG.sum(0) / counts_VG.sum(0)))
    if np.count_nonzero(counts_VG.sum(1)) < 2:
        return {"mean": mean, "low": None, "high": None}
    counts_RG = weights_RV @ counts_VG
    means_RG = np.divide(
        weights_RV @ sums_VG, counts_RG, where=counts_RG > 0, out=np.full(counts_RG.shape, np.nan)
    )
    drawn = means_RG[(counts_RG > 0).any(1)]
    low, high = np.quantile(np.nanmean(drawn, axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"mean": mean, "low": float(low), "high": float(high)}
