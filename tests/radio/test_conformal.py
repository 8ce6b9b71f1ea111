from __future__ import annotations

import datetime

import numpy as np
import pytest

from ninthsky.radio.accuracy import Q90, coverage_by_decile, truth_of
from ninthsky.radio.conformal import GROUPS, at_level, calibrate, groups_of
from ninthsky.radio.fast import LEVELS, site_roots
from ninthsky.radio.made import FIRST_DAY, make_shard
from ninthsky.radio.rolling import Pool, coverage, prepare, split_days

MONDAY = datetime.date(2026, 3, 2)


@pytest.mark.parametrize("by_hour", [True, False])
def test_shifts_are_the_quantiles_of_past_scores(by_hour: bool) -> None:
    rng = np.random.default_rng(0)
    spread = np.full((10, 80, 24), 0.2, np.float32)
    truth = (1 + 0.2 * rng.exponential(1, spread.shape)).astype(np.float32)
    shifts = calibrate(np.ones_like(spread), spread, truth, np.zeros(80, np.int64), by_hour)
    wanted = -np.log(1 - LEVELS)
    assert np.allclose(np.median(shifts.table[0], axis=0), wanted, rtol=0.15, atol=0.05)


def test_quantiles_never_cross() -> None:
    rng = np.random.default_rng(1)
    base = rng.random((50, 24, len(LEVELS))).astype(np.float32)
    spread = np.full((50, 24), 0.1, np.float32)
    shifts = calibrate(base[None], spread[None], rng.random((1, 50, 24)).astype(np.float32), np.zeros(50, np.int64))
    moved = shifts.apply(base, spread, np.zeros(50, np.int64))
    assert (np.diff(moved, axis=2) >= 0).all()
    assert (moved >= 0).all()


def test_unknown_truth_counts_for_nothing() -> None:
    spread = np.full((6, 60, 24), 0.1, np.float32)
    truth = np.full_like(spread, 1.0)
    holed = truth.copy()
    holed[::2] = -1
    group = np.zeros(60, np.int64)
    base = np.full_like(spread, 0.9)
    assert (calibrate(base, spread, truth, group).table == calibrate(base, spread, holed, group).table).all()


def test_a_level_between_two_is_between_them() -> None:
    quantiles = np.broadcast_to(LEVELS.astype(np.float32), (2, 24, len(LEVELS)))
    for level in (0.1, 0.42, 0.95, 0.97):
        assert at_level(quantiles, level)[0, 0] == pytest.approx(level, abs=1e-6)
    assert at_level(quantiles, 0.999)[0, 0] == pytest.approx(0.99)


def test_groups_are_told_by_the_shape_of_the_week() -> None:
    week = np.full((4, 7, 24), 0.2)
    week[0, 5:] = 0.05  # rests at weekends
    week[1, :, 18:] = 0.6  # evenings
    week[2, :, 9:17] = 0.6  # days
    roots = np.tile(np.sqrt(week), (1, 2, 1)).reshape(4, -1).astype(np.float32)
    roots[3] = -1
    assert [GROUPS[number] for number in groups_of(roots, 14, MONDAY)] == ["working days", "evenings", "days", "unknown"]


def test_coverage_holds_on_days_that_were_not_seen() -> None:
    """On made stations: overall and in every decile of load, decided beforehand."""
    roots = site_roots(make_shard(0, 600, 3, 28, seed=11))
    split = split_days(28)
    pool = Pool(roots, groups_of(roots, split.report, FIRST_DAY), FIRST_DAY)
    fast = prepare(pool, split.report, seed=1)
    days = range(split.report, split.days)
    quantiles = np.stack([fast.quantiles(roots, day, pool.group) ** 2 for day in days])
    truth = truth_of(pool, days)
    for level, low, high in ((0.5, 0.42, 0.58), (0.9, 0.86, 0.94), (0.99, 0.97, 1.0)):
        index = int(np.flatnonzero(level == LEVELS)[0])
        assert low <= coverage(truth, quantiles[..., index])[0] <= high
    by = coverage_by_decile(pool, days, fast, quantiles)
    assert all(share is not None and 0.83 <= share <= 0.97 for share in by["by_load"] + by["by_earlier_error"])
    assert Q90 == 8


@pytest.mark.parametrize("days", range(5, 120))
def test_days_are_split_without_overlap(days: int) -> None:
    split = split_days(days)
    assert 4 <= split.report < split.days == days
    assert split.choose == split.report or (split.choose >= 14 and split.report - split.choose == 7)
