from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ninthsky.radio.conformal import groups_of
from ninthsky.radio.energy import Power
from ninthsky.radio.fast import LEVELS, site_roots
from ninthsky.radio.made import FIRST_DAY, make_shard
from ninthsky.radio.rolling import Pool, accuracy, naive_error, prepare
from ninthsky.radio.rules import Rules, Sites, hourly_maximum, stay_on
from ninthsky.radio.trial import Trial, compare, level_within, verdict

DAYS = range(21, 28)


def quiet_nights(sites: int = 4, days: int = 28) -> np.ndarray:
    """Root loads of sites of two carriers: 0.2 at night, 0.9 by day."""
    load = np.full((sites, days, 24), 0.9, np.float32)
    load[:, :, :6] = 0.2
    return np.sqrt(load).reshape(sites, -1)


def test_saving_is_what_the_energy_model_says() -> None:
    trial = Trial(quiet_nights(), DAYS, Sites.twins(4), Rules())
    oracle = trial.oracle()
    power = Power()
    on = 2 * 24 + power.slope * (6 * 0.2 + 18 * 0.9)
    saved = 6 * (1 - power.sleep) - 2 * power.transition
    assert oracle.saving == pytest.approx(saved / on, rel=1e-5)
    assert oracle.violations == 0
    assert oracle.off_hours == pytest.approx(6)


def test_a_violation_is_a_sleeping_hour_over_the_limit() -> None:
    roots = quiet_nights()
    roots[0, 24 * 24 + 3] = np.sqrt(0.7)  # one night hour of one site over the 0.6 that one carrier may bear
    trial = Trial(roots, DAYS, Sites.twins(4), Rules())
    plan = trial.maximum_plan(1.0)
    assert plan.violations == pytest.approx(1 / (4 * 7 * 6 - 3))  # after that night the rule keeps two of three hours on
    assert plan.sites_violating == pytest.approx(0.25)
    assert trial.oracle().violations == 0


def test_hours_that_nobody_knows_count_nowhere() -> None:
    roots = quiet_nights()
    whole = Trial(roots, DAYS, Sites.twins(4), Rules()).oracle()
    roots[:, 22 * 24 : 23 * 24 : 5] = -1
    holed = Trial(roots, DAYS, Sites.twins(4), Rules()).oracle()
    assert holed.off_hours == pytest.approx(whole.off_hours, rel=0.03)
    assert holed.violations == 0


def test_the_rival_knows_the_past_alone() -> None:
    roots = quiet_nights()
    before = hourly_maximum(roots, 21)
    roots[:, 21 * 24 :] = 1.4
    assert (hourly_maximum(roots, 21) == before).all()


def test_night_window_sleeps_only_where_the_night_was_quiet() -> None:
    roots = quiet_nights()
    roots[1] = np.sqrt(0.5)
    outcome = Trial(roots, DAYS, Sites.twins(4), Rules()).night_plan()
    assert outcome.off_hours == pytest.approx(6 * 3 / 4)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda z: z.__setitem__((0, slice(20 * 24, 21 * 24)), -1), 1),
        (lambda z: z.__setitem__((0, slice(14 * 24, 20 * 24)), -1), 2),
        (lambda z: None, 0),
    ],
)
def test_a_site_without_sound_data_stays_on(change: object, reason: int) -> None:
    roots = quiet_nights()
    assert callable(change)
    change(roots)
    awake, why = stay_on(roots, 21)
    assert why.tolist() == [reason, 0, 0, 0]
    assert awake.tolist() == [reason > 0, False, False, False]
    plan = Trial(roots, range(21, 22), Sites.twins(4), Rules()).maximum_plan(1.0)
    assert plan.off_hours == pytest.approx(6 * (3 if reason else 4) / 4)


def test_comparison_is_fair_and_orders_as_it_must() -> None:
    counters = make_shard(0, 300, 3, 28, seed=4)
    roots = site_roots(counters)
    pool = Pool(roots, groups_of(roots, 21, FIRST_DAY), FIRST_DAY)
    fast = prepare(pool, 21, seed=1)
    quantiles = np.stack([fast.quantiles(roots, day, pool.group) ** 2 for day in DAYS])
    trial = Trial(roots, DAYS, Sites.of(counters), Rules())
    figures = compare(trial, quantiles)
    assert figures["oracle"]["violations"] == 0
    assert figures["plan"]["saving"] < figures["oracle"]["saving"]
    matched, factor = figures["hourly_maximum_matched"], figures["hourly_maximum_matched"]["factor"]
    assert matched["violations"] <= figures["plan"]["violations"]
    # The next smaller factor would have violated more: the rival was given all it can have.
    assert trial.maximum_plan(factor / 1.02).violations > figures["plan"]["violations"]
    assert figures["over_hourly_maximum"] == pytest.approx(figures["plan"]["saving"] - matched["saving"])
    frontier = [one["saving"] for one in figures["frontier"]]
    assert frontier == sorted(frontier, reverse=True)
    level = level_within(trial, quantiles, 0.01)
    assert trial.quantile_plan(quantiles, level).violations <= 0.01
    assert "Synthetic" not in verdict(figures) and "hindsight" in verdict(figures)


def test_the_verdict_says_plainly_when_the_rival_wins() -> None:
    figures = {"over_hourly_maximum": -0.01, "plan": {"violations": 0.01}, "hourly_maximum_matched": {"factor": 1.0}}
    assert "1.0 points MORE than the plan" in verdict(figures)
    assert "the same" in verdict({**figures, "over_hourly_maximum": 0.0})


def test_a_tighter_limit_saves_less_and_asks_more_of_the_rival_too() -> None:
    trial = Trial(quiet_nights(), DAYS, Sites.twins(4), Rules())
    tight = Trial(quiet_nights(), DAYS, Sites.twins(4), replace(Rules(), load_limit=0.1))
    assert tight.oracle().saving == 0 < trial.oracle().saving
    assert tight.maximum_plan(1.0).saving == 0


def test_errors_as_their_formulas_say() -> None:
    truth = np.array([[[1.0, 3.0, np.nan]]], np.float32)
    point = np.array([[[2.0, 3.0, 9.0]]], np.float32)
    one = accuracy(truth, point, np.array([[0.5]]))
    assert one.wape == pytest.approx(1 / 4)
    assert one.mase == pytest.approx(0.5 / 0.5)
    exact = np.repeat(np.nan_to_num(truth)[..., None], len(LEVELS), axis=-1)
    assert accuracy(truth, point, np.array([[0.5]]), exact).wql == pytest.approx(0)
    shifted = accuracy(truth, point, np.array([[0.5]]), exact + 1)
    assert shifted.wql == pytest.approx(2 * 2 * 0.5 / 4)  # mean of (1 - level) over 0.1 ... 0.9 is a half
    roots = np.sqrt(np.tile([1.0, 3.0], 24)).astype(np.float32)[None]
    assert naive_error(np.concatenate([roots, np.sqrt(roots**2 + 2)], axis=1), 4)[0] == pytest.approx(24 * 2 / 72, rel=1e-3)
