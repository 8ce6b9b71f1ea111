"""Which forecaster to trust, per group of series: each day's is the one that was better in the week before."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field, fields
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ninthsky.radio.conformal import GROUPS, Conformal, calibrate
from ninthsky.radio.fast import LEVELS
from ninthsky.radio.kernels import Floats
from ninthsky.radio.rolling import FastModel, Pool, days_of, hour_mean, pinball

FAST, BACKBONE, BOTH = "fast path", "transformer", "both, averaged"
FORECASTERS = (FAST, BACKBONE, BOTH)
CHOSEN = "chosen per group"
WEEK = 7
DAYS_WON = 6 / 7
MEDIAN = int(np.flatnonzero(LEVELS == 0.5)[0])


class Backbone(Protocol):
    """A forecaster beside the fast path: root-load quantiles [n, 24, levels] of a day from the days before it."""

    def quantiles(self, roots: Floats, first_day: datetime.date, day: int) -> Floats: ...


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
    """What was said about some days: root-load quantiles [days, n, 24, levels] of both, spread and truth [days, n, 24]."""

    fast: Floats
    raw: Floats
    spread: Floats
    truth: Floats

    def base(self, name: str) -> Floats:
        """The quantiles of BACKBONE or BOTH before their shift."""
        return self.raw if name == BACKBONE else (self.raw + self.fast) / np.float32(2)

    def then(self, later: Days) -> Days:
        """With later days after them; the last week is kept."""
        pairs = ((getattr(self, part.name), getattr(later, part.name)) for part in fields(self))
        return Days(*(np.concatenate(pair)[-WEEK:] for pair in pairs))

    def shift(self, name: str, group: NDArray[np.int64], rows: NDArray[np.bool_] | slice = slice(None)) -> Conformal:
        """The shift that would have made these days' quantiles hold."""
        return calibrate(self.base(name)[:, rows], self.spread[:, rows], self.truth[:, rows], group[rows], by_hour=False)


def look(pool: Pool, days: range, fast: FastModel, backbone: Backbone) -> Days:
    """Both forecasters on some days, each day from the days before it."""
    predicted = [fast.ridge.predict(pool.roots, day) for day in days]
    return Days(
        np.stack([fast.conformal.apply(*pair, pool.group) for pair in predicted]),
        np.stack([backbone.quantiles(pool.roots, pool.first_day, day) for day in days]),
        np.stack([spread for _, spread in predicted]),
        days_of(pool.roots, days),
    )


@dataclass(frozen=True)
class Scores:
    """Quantile losses [days, groups, forecasters] and loads [days, groups] of some days."""

    loss: NDArray[np.float64]
    load: NDArray[np.float64]

    def then(self, later: Scores) -> Scores:
        """With later days after them; the last week is kept."""
        pairs = (self.loss, later.loss), (self.load, later.load)
        return Scores(*(np.concatenate(pair)[-WEEK:] for pair in pairs))

    def best(self) -> tuple[str, ...]:
        """Each group's forecaster: the least loss, among the fast path and those that beat it on DAYS_WON of the days.

        A day is what repeats: weather and fairs move all stations at once, so many stations are not much evidence.
        """
        names = []
        for number in range(len(GROUPS)):
            loss = self.loss[:, number]
            able = [
                index for index in range(len(FORECASTERS)) if index == 0 or (loss[:, index] < loss[:, 0]).mean() >= DAYS_WON
            ]
            names.append(FORECASTERS[min(able, key=lambda index: float(loss[:, index].sum()))])
        return tuple(names)

    def wql(self) -> NDArray[np.float64]:
        """Weighted quantile loss [groups, forecasters]; NaN for a group without load."""
        load = self.load.sum(axis=0)[:, None]
        return np.where(load > 0, 2 * self.loss.sum(axis=0) / np.where(load > 0, load, 1), np.nan)


def score(truth: Floats, said: dict[str, Floats], group: NDArray[np.int64]) -> Scores:
    """Scores of load quantiles [days, n, 24, levels] against root loads [days, n, 24]."""
    known = truth >= 0
    load = np.where(known, truth, 0) ** 2
    member = (group[:, None] == np.arange(len(GROUPS))).astype(np.float64)
    losses = [np.where(known, pinball(load, said[name]), 0).sum(axis=2) @ member for name in FORECASTERS]
    return Scores(np.stack(losses, axis=-1), load.sum(axis=2) @ member)


def first_scores(seen: Days, group: NDArray[np.int64]) -> Scores:
    """Scores of the first week, whose shifts come from half of the series and are scored on the other, both ways."""
    halves = np.arange(len(group)) % 2
    said = {FAST: seen.fast**2}
    for name in (BACKBONE, BOTH):
        base = seen.base(name)
        moved = np.empty_like(base)
        for half in (0, 1):
            own = halves == half
            shift = seen.shift(name, group, ~own)
            for day in range(len(base)):
                moved[day, own] = shift.apply(base[day, own], seen.spread[day, own], group[own])
        said[name] = moved**2
    return score(seen.truth, said, group)


@dataclass(frozen=True)
class Rolled:
    """What was said about the reported days, and what they taught for the day after.

    `said` holds load quantiles [days, n, 24, levels] of every forecaster and of the one CHOSEN for each group and day.
    """

    said: dict[str, Floats]
    seen: Days
    scores: Scores


def roll(judged: Pool, days: range, fast: FastModel, backbone: Backbone, seen: Days) -> Rolled:
    """Every forecaster on some days. Shifts and the choice per group are made anew each day from the week before it.

    `seen` is the week before the first of the days.
    """
    scores = first_scores(seen, judged.group)
    said: dict[str, list[Floats]] = {name: [] for name in (CHOSEN, *FORECASTERS)}
    for day in days:
        one = look(judged, range(day, day + 1), fast, backbone)
        today = {FAST: one.fast[0] ** 2}
        for name in (BACKBONE, BOTH):
            shift = seen.shift(name, judged.group)
            today[name] = shift.apply(one.base(name)[0], one.spread[0], judged.group) ** 2
        chosen = today[FAST].copy()
        for number, name in enumerate(scores.best()):
            chosen[judged.group == number] = today[name][judged.group == number]
        for name, quantiles in {CHOSEN: chosen, **today}.items():
            said[name].append(quantiles)
        seen = seen.then(one)
        scores = scores.then(score(one.truth, {name: quantiles[None] for name, quantiles in today.items()}, judged.group))
    return Rolled({name: np.stack(parts) for name, parts in said.items()}, seen, scores)
