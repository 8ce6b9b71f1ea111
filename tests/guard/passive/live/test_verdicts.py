"""Stopped, stalled and ended ranks, as pure functions see them."""

from __future__ import annotations

import signal
from typing import Any

import numpy as np
import pytest

from ninthsky.guard.passive.live.ends import End, Gone, judge_ends
from ninthsky.guard.passive.live.readings import Readings
from ninthsky.guard.passive.live.stacks import Frame, Stack, Stacks
from ninthsky.guard.passive.live.verdicts import Stall, judge_stall, judge_stopped, stalled_seconds

NAMES = ("R", "T", "D", "S:futex", "S:nanosleep")
COLLECTIVE = Stack((Frame("all_reduce", "torch/distributed/distributed_c10d.py", 9), Frame("main", "train.py", 30)))
BACKWARD = Stack((Frame("_engine_run_backward", "torch/autograd/graph.py", 9), Frame("main", "train.py", 40)))
LOADING = Stack((Frame("read", "train.py", 7), Frame("main", "train.py", 20)))
SAVING = Stack((Frame("save", "torch/serialization.py", 7), Frame("main", "train.py", 50)))


def still(places: list[str], busy: tuple[int, ...] = (), seconds: float = 20.0) -> Readings:
    """Ranks that stand in these places and do nothing, but for those that are `busy`."""
    times = np.arange(0.0, seconds + 0.1, 0.25)
    ran = np.stack([times * (rank in busy) for rank in range(len(places))])
    place = np.stack([np.full(len(times), NAMES.index(name)) for name in places])
    return Readings(tuple(range(len(places))), times, ran, 0 * ran, place, NAMES)


def stall(stacks: list[Stack], *, seconds: float = 20.0, before: list[Stack] | None = None, **more: Any) -> Stall:
    looks = [Stacks(at, dict(enumerate(each))) for at, each in ((0.0, before or stacks), (2.0, stacks))]
    return Stall(seconds, 10.0, looks[0], looks[1], **{"world": len(stacks), **more})


FUTEX = ["S:futex"] * 4


def test_the_one_that_stands_elsewhere_is_named() -> None:
    verdict = judge_stall(still(FUTEX), stall([BACKWARD, BACKWARD, LOADING, BACKWARD]))
    assert verdict is not None and (verdict.cause, verdict.ranks) == ("stuck", (2,))
    assert "read (train.py:7)" in verdict.text
    # The others need not stand in one place, if all wait.
    verdict = judge_stall(still(FUTEX), stall([BACKWARD, COLLECTIVE, LOADING, BACKWARD]))
    assert verdict is not None and verdict.ranks == (2,)


def test_one_that_works_or_moves_is_waited_for() -> None:
    at = [BACKWARD, BACKWARD, SAVING, BACKWARD]
    assert judge_stall(still(FUTEX), stall(at, busy=frozenset({2}))) is None
    assert judge_stall(still(FUTEX, busy=(2,)), stall(at)) is None
    assert judge_stall(still(FUTEX), stall(at, before=[BACKWARD, BACKWARD, LOADING, BACKWARD])) is None
    verdict = judge_stall(still(FUTEX, seconds=90), stall(at, seconds=90.0, busy=frozenset({2})))
    assert verdict is not None and verdict.ranks == (2,) and "works on" in verdict.text


def test_nobody_is_named_where_all_stand_in_one_place_or_wait_in_different_ones() -> None:
    assert judge_stall(still(FUTEX), stall([BACKWARD] * 4)) is None, "perhaps a step of this job looks like that"
    for world, words in ((4, "every rank waits"), (8, "another host")):
        verdict = judge_stall(still(FUTEX), stall([BACKWARD] * 4, seconds=31.0, world=world))
        assert verdict is not None and (verdict.cause, verdict.ranks) == ("unknown", ()) and words in verdict.text
    verdict = judge_stall(still(FUTEX), stall([BACKWARD, BACKWARD, COLLECTIVE, BACKWARD]))
    assert verdict is not None and (verdict.cause, verdict.ranks) == ("mismatch", ())
    verdict = judge_stall(still(FUTEX), stall([LOADING, SAVING, COLLECTIVE, BACKWARD], seconds=31.0))
    assert verdict is not None and verdict.cause == "unknown"


def test_without_stacks_the_kernels_wait_tells_if_it_differs() -> None:
    blind = Stacks(0.0, {}, "no stack of rank 0: the kernel does not allow it")
    given = Stall(31.0, 10.0, blind, blind, 4)
    verdict = judge_stall(still(["S:futex", "S:nanosleep", "S:futex", "S:futex"], seconds=40.0), given)
    assert verdict is not None and verdict.ranks == (1,) and (verdict.confidence or 1.0) < 0.7
    assert any("does not allow" in str(fact.value) for fact in verdict.facts)
    verdict = judge_stall(still(FUTEX), given)
    assert verdict is not None and verdict.cause == "unknown"


def test_a_stopped_rank_is_named_and_a_stopped_job_blames_nobody() -> None:
    assert [v.ranks for v in judge_stopped(still(["S:futex", "T", "S:futex"]))] == [(1,)]
    assert [(v.cause, v.ranks) for v in judge_stopped(still(["T", "T", "T"]))] == [("unknown", ())]
    assert judge_stopped(still(["S:futex", "T", "S:futex"], seconds=0.5)) == [], "a debugger stops for moments"


def test_one_that_works_does_not_hide_that_the_others_stand_still() -> None:
    assert stalled_seconds(still(FUTEX, busy=(1,))) == pytest.approx(20.0)
    assert stalled_seconds(still(FUTEX, busy=(1, 2))) < 1.0
    assert stalled_seconds(still(FUTEX[:2], busy=(1,))) < 1.0, "of two, one that works is work"


def gone(*ends: tuple[int, int | None, float]) -> list[Gone]:
    return [Gone(rank, rank, End(100 + rank, status, 1000.0 + at, 0)) for rank, status, at in ends]


@pytest.mark.parametrize(
    ("ends", "alive", "cause", "ranks"),
    [
        (gone((2, -9, 0), (0, 1, 0.01), (1, -15, 0.1)), 0, "exit", (2,)),
        (gone((1, 1, 0), (2, 1, 0.5)), 2, "exit", (1,)),
        (gone((1, -15, 0), (0, -15, 0.08), (2, -15, 0.09)), 0, "exit", (1,)),  # one was told, then the launcher told the others
        (gone((0, -15, 0), (1, -15, 0.001), (2, -15, 0.002)), 0, "unknown", ()),
        (gone((0, -9, 0), (1, -9, 0.001)), 0, "unknown", ()),
        (gone((3, None, 0), (1, 1, 0.2)), 0, "exit", (3,)),
    ],
)
def test_the_first_end_is_named_unless_all_end_at_once(
    ends: list[Gone], alive: int, cause: str, ranks: tuple[int, ...]
) -> None:
    verdict = judge_ends(ends, alive, None)
    assert verdict is not None and (verdict.cause, verdict.ranks) == (cause, ranks)


def test_success_is_no_fault_and_an_early_success_is_told_beside_one() -> None:
    assert judge_ends(gone((0, 0, 0), (1, 0, 1.0)), 0, None) is None
    verdict = judge_ends(gone((0, 0, 0), (1, 1, 5.0)), 1, None)
    assert verdict is not None and verdict.ranks == (1,)
    assert any("status 0 before" in fact.name for fact in verdict.facts)
    launcher = End(1, -int(signal.SIGTERM), 1000.0, 0)
    told = judge_ends(gone((1, -15, 0.01)), 3, launcher)
    assert told is not None and told.ranks == (), "the launcher got it too"
