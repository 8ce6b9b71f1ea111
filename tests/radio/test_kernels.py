from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ninthsky.radio import fast
from ninthsky.radio.energy import Power, asleep_by_hour, switches
from ninthsky.radio.made import make_shard
from ninthsky.radio.rules import Rules, Sites, schedule
from ninthsky.radio.store import Counters

LOADS = hnp.arrays(np.float32, (4, 24), elements=st.floats(0, 3, width=32) | st.just(float("nan")))


@settings(max_examples=150)
@given(
    load=LOADS,
    carriers=st.lists(st.integers(1, 5), min_size=4, max_size=4),
    covers=st.integers(1, 5),
    limit=st.sampled_from([0.3, 0.6, 1.0]),
    min_off=st.integers(1, 5),
    most=st.integers(1, 4),
)
def test_a_plan_never_breaks_its_limits(
    load: np.ndarray, carriers: list[int], covers: int, limit: float, min_off: int, most: int
) -> None:
    count = np.array(carriers)
    sites = Sites(count, np.maximum(count - covers, 0))
    rules = Rules(load_limit=limit, min_off_hours=min_off, max_sleeps=most)
    awake = np.array([False, False, False, True])
    mask = schedule(load, sites, awake, rules)
    asleep = asleep_by_hour(mask)
    assert (asleep <= sites.may_sleep[:, None]).all()
    assert (asleep[3] == 0).all()
    assert (asleep[np.isnan(load)] == 0).all()
    sleeping = asleep > 0
    assert (load[sleeping] <= (np.float32(limit) * (count[:, None] - asleep))[sleeping] + 1e-6).all()
    for row in mask.ravel():
        runs = [len(run) for run in "".join("1" if row >> h & 1 else "0" for h in range(24)).split("0") if run]
        assert len(runs) <= most
        assert all(run >= min_off for run in runs)


@settings(max_examples=60)
@given(
    load=hnp.arrays(np.float32, (1, 24), elements=st.floats(0, 1, width=32)),
    min_off=st.integers(1, 4),
    most=st.integers(1, 3),
)
def test_no_single_carrier_could_sleep_longer(load: np.ndarray, min_off: int, most: int) -> None:
    rules = Rules(min_off_hours=min_off, max_sleeps=most)
    mask = schedule(load, Sites(np.array([2]), np.array([1])), np.array([False]), rules)
    fits = load[0] <= np.float32(0.6)
    assert bin(int(mask[0, 0])).count("1") == _most_hours(fits, min_off, most)


def _most_hours(fits: np.ndarray, min_off: int, most: int) -> int:
    """By dynamic programming over (hour, sleeps left): an independent way to the optimum."""
    best = np.zeros((26, most + 1), dtype=int)
    for hour in range(23, -1, -1):
        for left in range(most + 1):
            best[hour, left] = best[hour + 1, left]
            if left:
                for end in range(hour + min_off, 25):
                    if not fits[hour:end].all():
                        break
                    best[hour, left] = max(best[hour, left], end - hour + best[min(end + 1, 25), left - 1])
    return int(best[0, most])


def test_a_site_without_capacity_carriers_and_one_without_carriers_to_spare_stay_on() -> None:
    load = np.zeros((2, 24), np.float32)
    mask = schedule(load, Sites(np.array([1, 3]), np.array([0, 0])), np.zeros(2, bool), Rules())
    assert mask.size == 0 or not mask.any()


def test_tomorrow_is_forecast_from_the_past_alone() -> None:
    counters = make_shard(0, 40, 3, 28, seed=2)
    roots = fast.site_roots(counters)
    model = fast.fit(roots, 21, seed=1, first_weekday=0)
    before = model.predict(roots, 21)
    changed = roots.copy()
    changed[:, 21 * 24 :] = 9.0
    again = fast.fit(changed, 21, seed=1, first_weekday=0)
    for one, other in zip((*before, model.weights), (*again.predict(changed, 21), again.weights), strict=True):
        assert (one == other).all()


def test_a_site_is_unknown_where_any_of_its_cells_is(steady: Counters) -> None:
    steady.codes[1, 30] = 255
    roots = fast.site_roots(steady)
    assert roots[0, 30] < 0
    assert roots[0, 7] ** 2 == pytest.approx(1.5, rel=0.1)
    assert fast.site_roots(steady, copies=2.0)[0, 7] ** 2 == pytest.approx(3.0, rel=0.1)


def test_unknown_hours_do_not_move_the_forecast(steady: Counters) -> None:
    roots = fast.site_roots(steady)
    ridge = fast.fit(roots, 21, seed=1, first_weekday=0)
    median, spread = ridge.predict(roots, 21)
    gaps = roots.copy()
    gaps[0, np.arange(5, 500, 29)] = -1
    holed, _ = ridge.predict(gaps, 21)
    assert np.isfinite(holed).all() and np.isfinite(spread).all()
    assert np.abs(holed**2 - median**2).max() < 0.1


def test_a_short_history_is_the_hour_of_day_mean(steady: Counters) -> None:
    roots = fast.site_roots(steady)
    model = fast.fit(roots, fast.MIN_HISTORY - 1, seed=1, first_weekday=0)
    assert not model.ridge
    median, _ = model.predict(roots, 13)
    assert np.allclose(median[0], roots[0, : 13 * 24].reshape(13, 24).mean(axis=0), atol=1e-5)
    assert fast.fit(roots, fast.MIN_HISTORY, seed=1, first_weekday=0).ridge


def test_the_weekend_is_learnt_from_other_stations() -> None:
    """Stations that rest at weekends: the ridge follows, the hour-of-day mean does not."""
    rng = np.random.default_rng(0)
    days = np.where(np.arange(28) % 7 >= 5, 0.1, 0.4)
    load = days[None, :, None] * (1 + 0.05 * rng.standard_normal((60, 28, 24)))
    roots = np.sqrt(load).reshape(60, -1).astype(np.float32)
    model = fast.fit(roots, 26, seed=1, first_weekday=0)
    saturday = model.predict(roots, 26)[0] ** 2
    assert np.median(saturday) == pytest.approx(0.1, abs=0.02)


def test_energy_of_a_sleeping_carrier() -> None:
    power = Power(slope=0.72, sleep=0.1, transition=0.0)
    load = np.full((1, 24), 0.5, np.float32)
    carriers = np.array([3])
    on = power.site_energy(load, carriers, np.zeros((1, 24), np.int64))
    off = power.site_energy(load, carriers, np.full((1, 24), 2))
    assert on[0, 0] == pytest.approx(3 + 0.36)
    assert off[0, 0] == pytest.approx(1 + 0.2 + 0.36)


def test_switches_count_both_ends_of_every_sleep() -> None:
    mask = np.array([[0b0110_0000_0000_0000_0000_0011, 0], [0, 0], [(1 << 24) - 1, 1 << 23]], np.uint32)
    assert switches(mask).tolist() == [4, 0, 4]
