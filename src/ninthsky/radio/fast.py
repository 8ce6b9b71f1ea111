"""The fast path: hour-of-day mean plus a ridge on the residual, one set of weights for all series, spreads of their own.

No torch. Under 14 days of history the ridge loses to the plain hour-of-day mean (measured on week-long sets): it is not
used there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ninthsky.radio import kernels, store
from ninthsky.radio.kernels import FEATURES, Floats

MIN_HISTORY = 14  # days under which nothing beats the hour-of-day mean
MIN_FEATURES = 7  # days that the ridge's features need
CALIBRATION = 14  # days whose errors give a series its spread
PRIOR = 8.0  # observations that the series' average counts for in an hour's own spread
RIDGE = 1e-2
NEIGHBOURS = 3  # hours on each side whose rows are shared
ROUNDS = 5  # of reweighting towards absolute errors
FIT_ROWS = 24_000  # (series, day) pairs that the weights are fitted on

LEVELS = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99])


@dataclass(frozen=True)
class Ridge:
    """Weights [FEATURES, 24] for all series; the usual shape of errors over the day [24]; whether history was long enough."""

    weights: Floats
    spread_by_hour: Floats
    ridge: bool
    first_weekday: int  # of day 0, Monday 0

    def predict(self, roots: Floats, day: int) -> tuple[Floats, Floats]:
        """Median and spread [n, 24] of the root load on `day`, from the days before it."""
        shortest = MIN_FEATURES if self.ridge else 1
        calibration = max(0, min(CALIBRATION, day - shortest))
        return kernels.predict(roots, day, self.first_weekday, self.weights, self.spread_by_hour, calibration, PRIOR)


def square_table() -> Floats:
    """Load of each code, as a share of the cell's scale."""
    table: Floats = np.square(np.arange(256, dtype=np.float32) / np.float32(store.TOP))
    table[store.MISSING] = -1
    return table


def cell_roots(counters: store.Counters) -> Floats:
    """Root load of every cell [cells, hours]; -1 where unknown."""
    single = np.arange(len(counters.codes) + 1, dtype=np.int64)
    return kernels.site_roots(counters.codes, counters.scale, single, square_table(), 1.0)


def site_roots(counters: store.Counters, copies: float = 1.0) -> Floats:
    """Root load of every station [stations, hours], its cells added; -1 where any of them is unknown."""
    return kernels.site_roots(counters.codes, counters.scale, counters.starts, square_table(), copies)


def fit(roots: Floats, until: int, seed: int, first_weekday: int) -> Ridge:
    """Weights fitted on the target days before day `until`, by ridge regression reweighted towards absolute errors.

    Least squares with weights 1 / max(|residual|, small), five rounds; each hour shares the rows of its three neighbours
    on either side. With under MIN_HISTORY days before `until` the weights are zero: the hour-of-day mean.
    """
    usable = until >= MIN_HISTORY
    first = MIN_FEATURES if usable else 1
    targets = np.arange(first, until, dtype=np.int64)
    if len(targets) == 0:
        return Ridge(np.zeros((FEATURES, 24), np.float32), np.ones(24, np.float32), False, first_weekday)
    rng = np.random.default_rng((seed, until))
    # Rows to learn from: days with a longer history first, series at random where there are more than enough.
    targets = targets[-56:]
    most = max(1, FIT_ROWS // len(targets))
    chosen = roots if len(roots) <= most else roots[np.sort(rng.choice(len(roots), most, replace=False))]
    level = np.sqrt(np.where(chosen >= 0, chosen, 0)[:, : until * 24].mean(axis=1, keepdims=True) ** 2) + 1e-6
    scaled = np.where(chosen >= 0, chosen / level, kernels.UNKNOWN).astype(np.float32)
    mean, features = kernels.design(scaled, targets, first_weekday)
    truth = scaled.reshape(len(scaled), -1, 24)[:, targets]
    known = truth >= 0
    weights = np.zeros((FEATURES, 24))
    if usable:
        weights = _absolute_ridge(features, truth - mean, known)
    guess = mean + np.einsum("kh,ntkh->nth", weights, features)
    error = np.where(known, np.abs(truth - guess), 0).sum(axis=(0, 1)) / np.maximum(known.sum(axis=(0, 1)), 1)
    shape = error / error.mean() if error.mean() > 0 else np.ones(24)
    return Ridge(weights.astype(np.float32), np.maximum(shape, 0.05).astype(np.float32), usable, first_weekday)


def _absolute_ridge(features: Floats, residual: Floats, known: NDArray[np.bool_]) -> NDArray[np.float64]:
    rows = [np.flatnonzero(known[:, :, h].ravel()) for h in range(24)]
    x = [features[:, :, :, h].reshape(-1, FEATURES)[rows[h]].astype(np.float64) for h in range(24)]
    y = [residual[:, :, h].ravel()[rows[h]].astype(np.float64) for h in range(24)]
    solved = np.zeros((24, FEATURES))
    importance = [np.ones(len(part)) for part in y]
    for _ in range(ROUNDS):
        gram = np.array([(a * w[:, None]).T @ a for a, w in zip(x, importance, strict=True)])
        side = np.array([(a * w[:, None]).T @ b for a, b, w in zip(x, y, importance, strict=True)])
        for h in range(24):
            near = [(h + k) % 24 for k in range(-NEIGHBOURS, NEIGHBOURS + 1)]
            total = gram[near].sum(axis=0)
            trace = np.trace(total) / FEATURES
            if trace > 0:
                solved[h] = np.linalg.solve(total + RIDGE * trace * np.eye(FEATURES), side[near].sum(axis=0))
        for h in range(24):
            miss = np.abs(y[h] - x[h] @ solved[h])
            small = 0.3 * np.median(miss) + 1e-9 if len(miss) else 1.0
            importance[h] = 1 / np.maximum(miss, small)
            importance[h] /= importance[h].mean() if len(miss) else 1.0
    return solved.T
