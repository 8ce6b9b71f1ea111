"""Quantiles that hold what they promise: past errors, in units of each series' own spread, ranked per group and hour.

Split conformal prediction (Vovk et al. 2005; Romano, Patterson and Candes 2019 for the shift of given quantiles): the level tau
of n past scores is their ceil((n + 1) tau)-th smallest. Scores come from rolling origins, so no error has seen its own day.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ninthsky.radio.fast import LEVELS
from ninthsky.radio.kernels import Floats

GROUPS = ("working days", "evenings", "days", "unknown")
MIN_GROUP = 50  # series; a smaller group takes the ranks of all
NEIGHBOURS = 1  # hours on each side whose scores are shared


@dataclass(frozen=True)
class Conformal:
    """Shifts [groups, 24, levels] in units of the spread."""

    table: Floats

    def apply(self, base: Floats, spread: Floats, group: NDArray[np.int64]) -> Floats:
        """Root-load quantiles [n, 24, levels], rising with the level, from a median [n, 24] or quantiles [n, 24, levels]."""
        base = base if base.ndim == 3 else base[:, :, None]
        moved = base + spread[:, :, None] * self.table[group]
        return np.maximum.accumulate(np.maximum(moved, 0), axis=2).astype(np.float32)


def groups_of(roots: Floats, until: int, first_day: datetime.date) -> NDArray[np.int64]:
    """Each series' group, an index into GROUPS, from the days before `until`.

    Working days: weekends carry at most 0.8 of a working day's load. Else by the busier part: 18-24 h or 9-17 h.
    """
    days = roots[:, : until * 24].reshape(len(roots), until, 24)
    known = days >= 0
    load = np.where(known, days, 0) ** 2
    weekend = np.array([(first_day.weekday() + day) % 7 >= 5 for day in range(until)])

    def mean(day: NDArray[np.bool_] | slice, hours: slice) -> NDArray[np.float64]:
        part, seen = load[:, day, hours], known[:, day, hours]
        return part.sum(axis=(1, 2)) / np.maximum(seen.sum(axis=(1, 2)), 1)

    every = slice(None)
    group = np.where(mean(every, slice(18, 24)) > mean(every, slice(9, 17)), 1, 2)
    if weekend.any() and not weekend.all():
        work = mean(~weekend, every)
        seen_weekend = known[:, weekend].any(axis=(1, 2))
        group[seen_weekend & (mean(weekend, every) <= 0.8 * work)] = 0
    group[~known.any(axis=(1, 2))] = 3
    return group.astype(np.int64)


def calibrate(base: Floats, spread: Floats, truth: Floats, group: NDArray[np.int64], by_hour: bool = True) -> Conformal:
    """Shifts from past days: `base` [days, n, 24] or [days, n, 24, levels], `spread` and `truth` [days, n, 24], -1 unknown.

    `by_hour` ranks each hour by itself and its neighbours; else a group's hours are ranked together.
    """
    base = base if base.ndim == 4 else base[..., None]
    known = truth >= 0
    score = (truth[..., None] - base) / spread[..., None]
    hours = (
        [[(hour + k) % 24 for k in range(-NEIGHBOURS, NEIGHBOURS + 1)] for hour in range(24)] if by_hour else [list(range(24))]
    )
    table = np.zeros((len(GROUPS), 24, len(LEVELS)), np.float32)

    def fill(rows: NDArray[np.int64], members: NDArray[np.bool_]) -> None:
        own_score, own_known = score[:, members], known[:, members]
        for hour, near in enumerate(hours):
            seen = own_known[:, :, near]
            if seen.any():
                table[rows, hour if by_hour else slice(None)] = _ranks(own_score[:, :, near][seen])

    fill(np.arange(len(GROUPS)), np.ones(len(group), bool))
    for number in range(len(GROUPS)):
        if (members := group == number).sum() >= MIN_GROUP:
            fill(np.array([number]), members)
    return Conformal(table)


def _ranks(scores: Floats) -> NDArray[np.float64]:
    """The conformal rank of each level among scores [n, 1 or levels]."""
    count = len(scores)
    rank = np.clip(np.ceil((count + 1) * LEVELS).astype(int) - 1, 0, count - 1)
    if scores.shape[1] == 1:
        return np.partition(scores[:, 0], np.unique(rank))[rank]
    return np.array([np.partition(scores[:, k], rank[k])[rank[k]] for k in range(len(LEVELS))])


def at_level(quantiles: Floats, level: float) -> Floats:
    """The quantile at any level [n, 24], linear between the two that are known; the outermost ones beyond them."""
    level = float(np.clip(level, LEVELS[0], LEVELS[-1]))
    upper = int(np.searchsorted(LEVELS, level))
    if LEVELS[upper] == level or upper == 0:
        return quantiles[..., upper]
    share = (level - LEVELS[upper - 1]) / (LEVELS[upper] - LEVELS[upper - 1])
    return ((1 - share) * quantiles[..., upper - 1] + share * quantiles[..., upper]).astype(np.float32)
