from __future__ import annotations

import itertools
import time

import pytest

from ninthsky.train.step.recipe import Recipe, faster_precision, measure_steps


def test_wsd_warms_up_holds_and_falls() -> None:
    recipe = Recipe(lr=1.0, warmup=0.1, decay=0.2, final=0.1)
    rates = [recipe.rate(step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert rates[10:80] == [1.0] * 70
    assert rates[80] == 1.0 and rates[99] == pytest.approx(0.1 + 0.9 * 0.05)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[80:]))


def test_cosine_falls_from_the_end_of_the_warm_up() -> None:
    recipe = Recipe(lr=2.0, warmup=0.1, schedule="cosine", final=0.0)
    assert recipe.rate(10, 110) == pytest.approx(2.0, rel=1e-3)
    assert recipe.rate(11 + 49, 110) == pytest.approx(1.0, rel=0.05)
    assert recipe.rate(109, 110) < 0.01


@pytest.mark.parametrize("schedule", ["wsd", "cosine", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 1000])
def test_rates_are_positive_and_never_above_lr(schedule: str, steps: int) -> None:
    recipe = Recipe(lr=0.5, schedule=schedule)  # type: ignore[arg-type]
    assert all(0 < recipe.rate(step, steps) <= 0.5 for step in range(steps))


class Clock:
    """Stands still but for the steps that are told to take a time: no load of the machine can move it."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def step(self, seconds: float) -> None:
        self.now += seconds


def test_steps_fill_the_budget_by_the_median(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock.perf_counter)
    spans = iter([0.2, 0.2, 0.01, 0.01, 0.2, 0.01, 0.01])  # two to warm up, one disturbed
    steps = measure_steps(1.0, lambda: clock.step(next(spans)))
    assert 50 <= steps <= 100
    assert measure_steps(0.001, lambda: clock.step(0.002), warm=0, timed=1, least=7) == 7


def test_precision_is_bf16_only_where_it_gains() -> None:
    def busy(seconds: float) -> None:
        until = time.process_time() + seconds
        while time.process_time() < until:
            pass

    assert faster_precision(lambda precision: busy(0.004 if precision == "bf16" else 0.02)) == "bf16"
    assert faster_precision(lambda precision: busy(0.01)) == "fp32"
