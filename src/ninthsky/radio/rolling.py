"""Rolling day-ahead backtest: each day is forecast from the days before it; what is chosen is chosen on earlier days still."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ninthsky.radio.conformal import Conformal, calibrate
from ninthsky.radio.fast import LEVELS, MIN_HISTORY, Ridge, fit
from ninthsky.radio.kernels import Floats

CALIBRATION_DAYS = 10
SAMPLE = 4000  # series that ranks are taken from


@dataclass(frozen=True)
class Split:
    """Days [choose, report) choose among models, days [report, days) are reported, day `days` is tomorrow."""

    choose: int
    report: int
    days: int


def split_days(days: int) -> Split:
    """A quarter of the days is reported (28 at most; of short histories a half); the week before chooses, if there is one."""
    reported = min(28, days // 4) if days >= MIN_HISTORY else max(1, min(days // 2, days - 4))
    report = days - reported
    return Split(report - 7 if report - 7 >= MIN_HISTORY else report, report, days)


@dataclass(frozen=True)
class Pool:
    """Series that are forecast together: root loads [n, hours], -1 unknown; group of each; date of hour 0."""

    roots: Floats
    group: NDArray[np.int64]
    first_day: datetime.date

    def rows(self, rows: NDArray[np.int64]) -> Pool:
        """Some of the series."""
        return Pool(self.roots[rows], self.group[rows], self.first_day)


@dataclass(frozen=True)
class FastModel:
    """Ridge and ranks that know the days before `until` only; good for days from there on."""

    ridge: Ridge
    conformal: Conformal

    def quantiles(self, roots: Floats, day: int, group: NDArray[np.int64]) -> Floats:
        """Root-load quantiles [n, 24, levels] of `day`."""
        return self.conformal.apply(*self.ridge.predict(roots, day), group)


def prepare(pool: Pool, until: int, seed: int) -> FastModel:
    """Fits on target days before `until` and ranks the errors of up to ten rolling origins before it."""
    ridge = fit(pool.roots, until, seed, pool.first_day.weekday())
    shortest = min(MIN_HISTORY, max(until - 3, 8)) if ridge.ridge else min(2, until - 1)
    origins = range(max(shortest, until - CALIBRATION_DAYS), until)
    sample = pool
    if len(pool.roots) > SAMPLE:
        rng = np.random.default_rng((seed, until, 1))
        sample = pool.rows(np.sort(rng.choice(len(pool.roots), SAMPLE, replace=False)))
    median, spread = (np.stack(part) for part in zip(*(ridge.predict(sample.roots, day) for day in origins), strict=True))
    return FastModel(ridge, calibrate(median, spread, days_of(sample.roots, origins), sample.group))


def days_of(roots: Floats, days: Sequence[int]) -> Floats:
    """Truth [days, n, 24] of some days."""
    return np.stack([roots[:, day * 24 : day * 24 + 24] for day in days])


def hour_mean(roots: Floats, day: int) -> Floats:
    """The rival: mean load of each hour over the 28 days before [n, 24]."""
    past = roots[:, max(0, day - 28) * 24 : day * 24].reshape(len(roots), -1, 24)
    known = past >= 0
    count = known.sum(axis=1)
    load = (np.where(known, past, 0) ** 2).sum(axis=1) / np.maximum(count, 1)
    return np.where(count > 0, load, np.nan).astype(np.float32)


def seasonal_naive(roots: Floats, day: int) -> Floats:
    """The rival: the same hour a week ago, or a day ago where there was no week [n, 24]."""
    before = 7 if day >= 7 else 1
    past = roots[:, (day - before) * 24 : (day - before) * 24 + 24]
    return np.where(past >= 0, past**2, np.nan).astype(np.float32)


def naive_error(roots: Floats, day: int) -> NDArray[np.float64]:
    """MASE's scale: mean absolute day-to-day difference of each series over its days before `day`."""
    load = np.where(roots >= 0, roots, np.nan)[:, : day * 24] ** 2
    gap = np.abs(load[:, 24:] - load[:, :-24])
    known = np.isfinite(gap)
    total = np.where(known, gap, 0).sum(axis=1)
    return np.where(total > 0, total / np.maximum(known.sum(axis=1), 1), np.nan)


@dataclass(frozen=True)
class Accuracy:
    """Errors of one method over days and series: shares of the load, and against the day-before naive (season 24)."""

    wape: float
    mase: float
    wql: float | None = None

    def row(self) -> dict[str, float | None]:
        """As plain numbers."""
        return {"wape": self.wape, "mase": self.mase, "wql": self.wql}


def accuracy(truth: Floats, point: Floats, scale: NDArray[np.float64], quantiles: Floats | None = None) -> Accuracy:
    """Accuracy of `point` [days, n, 24] against the load `truth` (NaN unknown); `scale` [days, n] from naive_error.

    WQL: twice the mean pinball loss over the levels 0.1 to 0.9, over the mean load (as in the M5 and GluonTS).
    """
    known = np.isfinite(truth) & np.isfinite(point)
    error = np.where(known, np.abs(truth - point), 0)
    total = float(np.where(known, truth, 0).sum())
    per_series = np.where(known.any(axis=2), error.sum(axis=2) / np.maximum(known.sum(axis=2), 1) / scale, np.nan)
    wql = None
    if quantiles is not None:
        loss = pinball(truth, quantiles)
        wql = float(2 * loss[known].mean() * known.sum() / total) if total > 0 else float("nan")
    return Accuracy(
        wape=float(error.sum() / total) if total > 0 else float("nan"),
        mase=float(np.nanmean(per_series)) if np.isfinite(per_series).any() else float("nan"),
        wql=wql,
    )


def pinball(truth: Floats, quantiles: Floats) -> Floats:
    """Mean pinball loss over the levels 0.1 to 0.9: shape of `truth`."""
    inner = LEVELS <= 0.9
    gap = truth[..., None] - quantiles[..., inner]
    levels = LEVELS[inner].astype(np.float32)
    return np.maximum(levels * gap, (levels - 1) * gap).mean(axis=-1)


def coverage(truth: Floats, upper: Floats, parts: NDArray[np.int64] | None = None) -> list[float]:
    """Share of known truth at or under `upper`: of all as a list of one, or of each decile (`parts`: 0-9, same shape)."""
    known = np.isfinite(truth)
    under = truth <= upper
    chosen = [known] if parts is None else [known & (parts == number) for number in range(10)]
    return [float(under[part].mean()) if part.any() else float("nan") for part in chosen]


def deciles(values: NDArray[Any]) -> NDArray[np.int64]:
    """Decile 0-9 of each value among all of them."""
    flat = values.ravel()
    order = np.argsort(np.argsort(flat, kind="stable"), kind="stable")
    return (order * 10 // len(flat)).reshape(values.shape)
