from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from ninthsky.train.cut.parallel import Own  # noqa: E402
from ninthsky.train.step.ranges import LEAST, NOTHING, Ranges  # noqa: E402


def _step(ranges: Ranges, **largest: float) -> float:
    ranges.begin()
    ranges.see([Own(name, torch.tensor([0.1 * value, -value]), None, False) for name, value in largest.items()])
    return ranges.excess().log2


def _learned(**largest: float) -> Ranges:
    ranges = Ranges()
    for _ in range(LEAST):
        assert _step(ranges, **largest) == 0.0
        ranges.keep()
    return ranges


def test_the_weight_that_reaches_farthest_beyond_its_past_is_found() -> None:
    ranges = _learned(a=1.0, b=64.0)
    assert _step(ranges, a=16.0, b=64.0) == pytest.approx(4.0)
    assert ranges.weights[ranges.excess().number] == "a"


def test_an_attempt_that_was_not_applied_is_no_history() -> None:
    ranges = _learned(a=1.0)
    assert _step(ranges, a=1e6) > 19
    assert _step(ranges, a=1e6) > 19
    ranges.keep()
    assert _step(ranges, a=1e6) == pytest.approx(0.0)


def test_an_expert_that_was_idle_is_no_outlier() -> None:
    ranges = _learned(a=1.0, idle=0.0)
    assert _step(ranges, a=1.0, idle=0.001) < 1.0


def test_what_is_not_finite_has_another_judge() -> None:
    ranges = _learned(a=1.0)
    ranges.begin()
    ranges.see([Own("a", torch.tensor([float("inf"), 1.0]), None, False)])
    assert ranges.excess() == NOTHING
