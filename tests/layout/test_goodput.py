from __future__ import annotations

import numpy as np
import pytest

from ninthsky.layout.goodput import FAILURES_PER_CARD_SECOND, goodput


def simulated(cards: int, repair: float, every: float, stall: float, days: float = 54, runs: int = 300) -> float:
    """Share of time that trains, failure by failure: work since the last checkpoint is lost, then `repair` seconds pass."""
    rng = np.random.default_rng(1)
    total, useful = days * 86_400, np.zeros(runs)
    for run in range(runs):
        clock = 0.0
        while clock < total:
            until = min(rng.exponential(1 / (FAILURES_PER_CARD_SECOND * cards)), total - clock)
            whole, rest = divmod(until, every + stall)
            useful[run] += whole * every + (min(rest, every) if clock + until >= total else 0.0)
            clock += until + repair
    return float(useful.mean() / total)


@pytest.mark.parametrize("repair", [10.0, 60.0, 600.0])
def test_closed_form_agrees_with_a_simulation(repair: float) -> None:
    assert goodput(18_432, repair / 2, repair / 2).effective == pytest.approx(simulated(18_432, repair, 60.0, 0.2), abs=0.003)


def test_a_fault_costs_more_where_there_are_more_cards() -> None:
    shares = [goodput(cards, 30, 30).effective for cards in (1_000, 10_000, 100_000)]
    assert shares == sorted(shares, reverse=True)
    assert goodput(18_432, 30, 30).mean_seconds_between / 3600 == pytest.approx(2.75, abs=0.01)
