"""Which forecaster to trust, per group of series: each is scored on days that come before the reported ones."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ninthsky.radio.conformal import GROUPS, Conformal, calibrate
from ninthsky.radio.fast import LEVELS
from ninthsky.radio.kernels import Floats
from ninthsky.radio.rolling import FastModel, Split, days_of, hour_mean, pinball, prepare

FAST, BACKBONE, BOTH = "fast path", "transformer", "both, averaged"
MEDIAN = int(np.flatnonzero(LEVELS == 0.5)[0])


class Backbone(Protocol):
    """A forecaster beside the fast path: root-load quantiles [n, 24, levels] of a day from the days before it."""

    def quantiles(self, roots: Floats, first_day: datetime.date, day: int) -> Floats: ...


@dataclass(frozen=True)
class Pool:
    """Series that are forecast alike: root loads [n, hours], groups (see `grouped`), date of hour 0."""

    roots: Floats
    group: NDArray[np.int64]
    first_day: datetime.date

    def rows(self, rows: NDArray[np.int64]) -> Pool:
        """Some of the series."""
        return Pool(self.roots[rows], self.group[rows], self.first_day)


@dataclass(frozen=True)
class Chosen:
    """The fast path, the other forecaster where there is one, and which of them each group takes."""

    fast: FastModel
    backbone: Backbone | None = None
    shifts: dict[str, Conformal] = field(default_factory=dict)  # for BACKBONE and BOTH
    model_of_group: tuple[str, ...] = (FAST,) * len(GROUPS)

    def quantiles(self, pool: Pool, day: int) -> Floats:
        """Load quantiles [n, 24, levels] of `day`: the chosen forecaster of each group, conformal."""
        median, spread = self.fast.ridge.predict(pool.roots, day)
        out = self.fast.conformal.apply(median, spread, pool.group)
        names = np.array(self.model_of_group)[pool.group]
        rows = np.flatnonzero(names != FAST)
        if len(rows) and self.backbone is not None:
            raw = self.backbone.quantiles(pool.roots[rows], pool.first_day, day)
            for name in (BACKBONE, BOTH):
                part = names[rows] == name
                if part.any():
                    base = raw[part] if name == BACKBONE else (raw[part] + out[rows[part]]) / 2
                    out[rows[part]] = self.shifts[name].apply(base, spread[rows[part]], pool.group[rows[part]])
        return out**2

    def point(self, pool: Pool, day: int, quantiles: Floats) -> Floats:
        """Point forecast [n, 24]: the median, or with a short history the hour-of-day mean, which nothing beats there."""
        return quantiles[..., MEDIAN] if self.fast.ridge.ridge else hour_mean(pool.roots, day)


@dataclass(frozen=True)
class Days:
    """What the candidates say about some days: root-load quantiles [days, n, 24, levels], spread and truth [days, n, 24]."""

    fast: Floats
    raw: Floats
    spread: Floats
    truth: Floats

    def base(self, name: str) -> Floats:
        """The quantiles of BACKBONE or BOTH before their shift."""
        return self.raw if name == BACKBONE else (self.raw + self.fast) / np.float32(2)


def look(pool: Pool, days: range, fast: FastModel, backbone: Backbone) -> Days:
    """Both forecasters on some days, each day from the days before it."""
    predicted = [fast.ridge.predict(pool.roots, day) for day in days]
    return Days(
        np.stack([fast.conformal.apply(*pair, pool.group) for pair in predicted]),
        np.stack([backbone.quantiles(pool.roots, pool.first_day, day) for day in days]),
        np.stack([spread for _, spread in predicted]),
        days_of(pool.roots, days),
    )


def choose(
    pool: Pool, judged: Pool, split: Split, backbone: Backbone, seed: int
) -> tuple[tuple[str, ...], list[list[float | str]], Days]:
    """The best model of each group by weighted quantile loss on the days [choose, report).

    `judged` is the part of `pool` that is scored. Shifts are taken from one half of it and scored on the other, both ways.
    Returns the names per group, a table of scores, and what was seen, from which the shifts for later days are taken.
    """
    fast = prepare(pool.roots, split.choose, pool.group, seed, pool.first_day.weekday())
    seen = look(judged, range(split.choose, split.report), fast, backbone)
    halves = np.arange(len(judged.roots)) % 2
    scored = {FAST: seen.fast}
    for name in (BACKBONE, BOTH):
        base = seen.base(name)
        moved = np.empty_like(base)
        for half in (0, 1):
            own, other = halves == half, halves != half
            shift = calibrate(base[:, other], seen.spread[:, other], seen.truth[:, other], judged.group[other])
            for day in range(len(base)):
                moved[day, own] = shift.apply(base[day, own], seen.spread[day, own], judged.group[own])
        scored[name] = moved
    known = seen.truth >= 0
    load = np.where(known, seen.truth, 0) ** 2
    loss = {name: np.where(known, pinball(load, quantiles**2), 0) for name, quantiles in scored.items()}
    names: list[str] = []
    table: list[list[float | str]] = []
    everywhere = {name: float(values.sum()) for name, values in loss.items()}
    for number, title in enumerate(GROUPS):
        members = judged.group == number
        total = float(load[:, members].sum())
        if not members.any() or total <= 0:
            names.append(min(everywhere, key=lambda name: everywhere[name]))
            continue
        wql = {name: 2 * float(values[:, members].sum()) / total for name, values in loss.items()}
        names.append(min(wql, key=lambda name: wql[name]))
        table.append([title, int(members.sum()), *(wql[name] for name in (FAST, BACKBONE, BOTH)), names[-1]])
    return tuple(names), table, seen


def decide(
    pool: Pool, until: int, seed: int, names: tuple[str, ...], backbone: Backbone | None, seen: Days | None, judged: Pool
) -> Chosen:
    """A model that knows the days before `until`: the fast path fitted anew, the shifts from days already seen."""
    fast = prepare(pool.roots, until, pool.group, seed, pool.first_day.weekday())
    if backbone is None or seen is None:
        return Chosen(fast)
    shifts = {name: calibrate(seen.base(name), seen.spread, seen.truth, judged.group) for name in (BACKBONE, BOTH)}
    return Chosen(fast, backbone, shifts, names)
