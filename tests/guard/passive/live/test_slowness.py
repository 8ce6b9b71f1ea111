"""Who is slow, by arrays as /proc gives them: work, time in line, stops, other waits, and nobody where nobody is."""

from __future__ import annotations

import numpy as np
import pytest

from ninthsky.guard.passive.live.readings import Readings
from ninthsky.guard.passive.live.slowness import judge_slow

NAMES = ("R", "T", "S:futex", "S:poll")
EVERY = 0.25


def readings(
    work: list[float],
    *,
    seconds: float = 60.0,
    queued: list[float] | None = None,
    places: list[list[float]] | None = None,
    seed: int = 0,
) -> Readings:
    """`work`, `queued`: shares of the time of each rank, with 5 % of noise from sample to sample; `places`: shares of NAMES."""
    rng = np.random.default_rng(seed)
    ranks, count = len(work), int(seconds / EVERY)
    share = np.array(work)[:, None] * (1 + 0.05 * rng.standard_normal((ranks, count)))
    line = np.array(queued or [0.0] * ranks)[:, None] * (1 + 0.2 * rng.standard_normal((ranks, count)))
    wait = [places[rank] if places else [work[rank], 0.0, 1.0 - work[rank], 0.0] for rank in range(ranks)]
    place = np.stack([rng.choice(len(NAMES), count, p=shares) for shares in wait])
    return Readings(
        tuple(range(ranks)),
        EVERY * np.arange(count, dtype=np.float64),
        np.cumsum(EVERY * share, axis=1),
        np.cumsum(EVERY * line, axis=1),
        place,
        NAMES,
    )


def test_more_work_is_named_also_where_all_stand_in_line() -> None:
    for slow in (0.305, 0.405):
        found = judge_slow(readings([0.2, 0.2, slow, 0.2], queued=[0.3, 0.25, 0.3, 0.28]), 1.25)
        assert [(verdict.cause, verdict.ranks) for verdict in found] == [("slow", (2,))]
        assert f"does {slow / 0.2:.1f}" in found[0].text


@pytest.mark.parametrize("seed", range(20))
def test_nobody_is_named_where_all_do_the_same(seed: int) -> None:
    assert judge_slow(readings([0.2, 0.21, 0.2, 0.19], seconds=120, seed=seed), 1.25) == []


def test_a_rank_that_a_neighbour_keeps_from_running_is_not_blamed() -> None:
    found = judge_slow(readings([0.2, 0.2, 0.2, 0.2], queued=[0.05, 0.5, 0.05, 0.05]), 1.25)
    assert [(verdict.cause, verdict.ranks) for verdict in found] == [("host", ())]
    assert "keeps rank 1 from running" in found[0].text


def test_more_work_that_nobody_waits_for_is_no_fault() -> None:
    assert judge_slow(readings([0.5, 0.5, 0.98, 0.5], places=[[0.5, 0, 0, 0.5]] * 2 + [[1.0, 0, 0, 0], [0.5, 0, 0, 0.5]],
                               queued=[0.48, 0.48, 0.0, 0.48]), 1.25) == []  # fmt: skip


@pytest.mark.parametrize(("share", "words"), [([0.2, 0.6, 0.2, 0.0], "state T"), ([0.2, 0.0, 0.2, 0.6], "poll")])
def test_one_that_is_stopped_or_waits_for_something_of_its_own(share: list[float], words: str) -> None:
    others = [0.2, 0.0, 0.8, 0.0]
    found = judge_slow(readings([0.2] * 4, places=[others, share, others, others]), 1.25)
    assert [(verdict.cause, verdict.ranks) for verdict in found] == [("slow", (1,))]
    assert words in found[0].text


def test_ranks_that_spin_while_they_wait_tell_nothing_and_two_ranks_neither() -> None:
    assert judge_slow(readings([0.99, 0.99, 1.0, 0.98]), 1.25) == []
    assert judge_slow(readings([0.2, 0.6]), 1.25) == []
    assert judge_slow(readings([0.2, 0.2, 0.4, 0.2], seconds=15), 1.25) == [], "too short to tell"
    assert judge_slow(readings([0.0, 0.0, 0.4, 0.0]), 1.25) == [], "others stand still: not slow but stuck"
