"""Rules on made windows: what each sees, and what it must not take for trouble."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("torch")

from ninthsky.train.control import rules
from ninthsky.train.control.limits import Limits
from ninthsky.train.control.rules import Reading
from ninthsky.train.control.window import Step, Validation, Window, local_z, noise
from ninthsky.train.step.trainer import Gate

LIMITS = Limits(mode="act")


def window(losses: list[float], norms: list[float] | None = None, spread: float = 0.1) -> Window:
    made = Window(LIMITS.window)
    for number, loss in enumerate(losses):
        made.add(Step(number, loss, norms[number] if norms else 1.0 + 0.02 * (number % 3), spread, 0.05))
    return made


def falling(steps: int, seed: int = 0, scatter: float = 0.1) -> list[float]:
    rng = np.random.default_rng(seed)
    return [4.5 - 2 * number / 200 + float(rng.normal(0, scatter)) for number in range(steps)]


def reading(step: int, loss: float, norm: float = 1.0, own: tuple[float, ...] = (1.0,) * 4) -> Reading:
    return Reading(step, loss, norm, own, (loss,) * len(own))


def test_the_window_forgets_the_oldest_and_what_was_rolled_back() -> None:
    made = window(falling(100))
    assert [made.steps[0].step, made.steps[-1].step, len(made.steps)] == [36, 99, 64]
    made.add_validation(Validation(90, 3.0, 3.0))
    made.back_to(80)
    assert made.steps[-1].step == 79 and made.validations == []


def test_a_trend_counts_little_as_noise() -> None:
    steep = [10.0 - 0.1 * number for number in range(64)]
    assert noise(steep) == pytest.approx(1.4826 * 0.45)
    assert local_z(steep, steep[-1] - 0.1, 0.01) < 0


@pytest.mark.parametrize("seed", range(4))
def test_an_ordinary_run_is_left_alone(seed: int) -> None:
    losses = falling(200, seed)
    for step in range(LIMITS.least, 200, 3):
        made = window(losses[:step])
        assert rules.judge(made, reading(step, losses[step], 1.02), LIMITS) is None


def test_before_the_least_number_of_steps_no_rule_speaks() -> None:
    losses = falling(LIMITS.least)
    assert rules.judge(window(losses[:-1]), reading(19, 50.0), LIMITS) is None
    found = rules.judge(window(losses), reading(20, 50.0), LIMITS)
    assert found is not None and found.rule == "spike"


def test_a_spike_needs_a_far_loss_or_a_loss_and_a_norm_that_agree() -> None:
    made = window(falling(60, scatter=0.1))
    expected, scale = float(np.median(made.losses[-8:])), noise(made.losses)
    assert rules.spike(made, reading(60, expected + 5 * scale), LIMITS) is None
    assert rules.spike(made, reading(60, expected + 7 * scale), LIMITS) is not None
    assert rules.spike(made, reading(60, expected + 5 * scale, norm=2.0), LIMITS) is not None
    assert rules.spike(made, reading(60, expected, norm=4.0), LIMITS) is None, "clipping deals with it"
    assert rules.spike(made, reading(60, expected, norm=20.0), LIMITS) is not None
    found = rules.spike(made, reading(60, math.nan, math.nan), LIMITS)
    assert found is not None and found.text == "loss or gradient is not finite"


def test_a_rank_far_from_its_peers_is_named_and_a_jump_of_all_is_not() -> None:
    made = window(falling(60))
    usual = made.losses[-1]
    for factor in (20.0, 0.05):
        found = rules.own(made, reading(60, usual, own=(1.0, 1.1, 0.95, factor)), LIMITS)
        assert found is not None and found.ranks == (3,)
    assert rules.own(made, reading(60, usual, own=(1.0, 1.1, 0.9, 2.0)), LIMITS) is None
    assert rules.own(made, reading(60, usual, own=(1.0, 20.0)), LIMITS) is None, "of two nobody is the odd one"
    assert rules.own(made, reading(60, usual, own=(1.0, 20.0, 30.0, 1.0)), LIMITS) is None, "two of four are no single rank"
    worse = Reading(60, usual + 0.5, 1.0, (1.0,) * 4, (usual, usual, usual + 2.0, usual))
    found = rules.own(made, worse, LIMITS)
    assert found is not None and found.ranks == (2,)
    all_worse = Reading(60, usual + 3, 1.0, (1.0,) * 4, (usual + 3, usual + 3, usual + 5, usual + 3))
    assert rules.own(made, all_worse, LIMITS) is None


def test_a_rise_over_many_steps_is_seen_and_a_bump_that_mends_itself_is_not() -> None:
    base = falling(60, scatter=0.05)
    climbing = base + [base[-1] + 0.04 * number for number in range(1, 25)]
    found = rules.rise(window(climbing), reading(84, climbing[-1]), LIMITS)
    assert found is not None and 50 <= found.onset <= 62
    bump = base + [base[-1] + 0.5] * 5 + [base[-1] - 0.01 * number for number in range(19)]
    assert not any(rules.rise(window(bump[:step]), reading(step, bump[step]), LIMITS) for step in range(60, 84))


def test_drift_needs_several_validations_above_the_best() -> None:
    made = window(falling(60))
    for number, loss in enumerate((3.0, 2.8, 2.7, 2.8, 2.85)):
        made.add_validation(Validation(10 * number, loss, 3.0 - 0.1 * number))
    now = reading(60, 2.5)
    assert rules.drift(made, now, LIMITS) is None
    made.add_validation(Validation(50, 2.9, 2.4))
    found = rules.drift(made, now, LIMITS)
    assert found is not None and found.onset == 21 and "training loss falls" in found.text
    made.add_validation(Validation(60, 2.7, 2.4))
    assert rules.drift(made, now, LIMITS) is None


def test_a_reading_takes_ranks_that_count_no_tokens() -> None:
    gates = [Gate(True, 4.0, 30.0, 10.0, 10.0), Gate(True, 12.0, 0.0, 0.0, 12.0), Gate(True, 0.0, 30.0, 10.0, 11.0)]
    now = Reading.of(3, gates)
    assert (now.loss, now.norm) == (3.0, 0.2)
    assert now.own == (1.0, 1.2, 1.1) and now.losses == (3.0, None, 3.0)
    assert now.spread == pytest.approx(math.log(1.1)) and now.worst == 0.0


def test_every_rule_has_a_row_and_every_cause_an_action() -> None:
    assert {rule for rule, _ in rules.RULES} == {rule for rule, _ in rules.ACTIONS} - {"dead"}
