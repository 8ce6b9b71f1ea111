"""The judges of data, on made windows and in a job: who waits for whom, and that storage is no card's fault."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ninthsky.guard.controller.fleet import STEPS, Window
from ninthsky.guard.job import run_job
from ninthsky.guard.judges.data import judge_data, judge_loading
from ninthsky.guard.judges.hang import judge_hang
from ninthsky.guard.probe.record import Phase
from tests.guard.test_judges import LIMITS, enter, window


def stalled(ranks: list[int], world: int = 8, seconds: float = 3.0, **fields: Any) -> Window:
    """These ranks stand in phase DATA, the others in the next collective."""
    w = window(world, quiet=np.full(world, seconds), **fields)
    w.record["phase"][ranks] = Phase.DATA
    enter(w, [rank for rank in range(world) if rank not in ranks])
    return w


def test_one_loader_is_named_and_the_card_is_not_meant() -> None:
    (verdict,) = judge_data(stalled([5]), LIMITS)
    assert (verdict.cause, verdict.ranks, verdict.playbook) == ("data", (5,), "dataloader")
    assert verdict.onset == pytest.approx(3.0)


def test_all_ranks_of_a_host_are_its_mount() -> None:
    verdicts = judge_data(stalled([4, 5]), LIMITS)
    assert [verdict.ranks for verdict in verdicts] == [(4,), (5,)]
    assert {verdict.playbook for verdict in verdicts} == {"filesystem_stall"}


@pytest.mark.parametrize("ranks", [[0, 2, 5], list(range(8))])
def test_ranks_of_several_hosts_are_the_storage_and_nobody_is_named(ranks: list[int]) -> None:
    (verdict,) = judge_data(stalled(ranks), LIMITS)
    assert (verdict.cause, verdict.ranks, verdict.playbook) == ("data", (), "filesystem_stall")


def test_first_batches_may_take_their_time() -> None:
    early = stalled(list(range(8)), seconds=15.0, steps_seen=0)
    assert not judge_data(early, LIMITS)
    assert judge_data(stalled(list(range(8)), seconds=100.0, steps_seen=0), LIMITS)


def test_who_reads_is_waited_for_longer() -> None:
    assert not judge_data(stalled([5], busy_cpu=np.full(8, 2.9)), LIMITS)
    assert not judge_data(stalled([5], state=("D",) * 8), LIMITS)
    assert judge_data(stalled([5], state=("D",) * 8, seconds=30.0), LIMITS)


def test_nothing_is_said_while_anything_moves_or_where_another_is_behind() -> None:
    assert not judge_data(stalled([5], seconds=1.0), LIMITS)
    w = stalled([5])
    w.record["phase"][2] = Phase.LOCAL
    w.record["groups"]["enqueued"][2, 0] -= 1
    assert not judge_data(w, LIMITS), "rank 2 is behind too, and not for data"
    w = stalled([5])
    w.record["phase"][5] = Phase.LOCAL
    assert not judge_data(w, LIMITS)
    assert judge_hang(w, LIMITS)


def loading(rows: dict[int, float], usual: float = 5.0, before: float | None = None, world: int = 8) -> Window:
    """Data times in ms of the last steps: of some ranks, of the others, and of all before."""
    data = np.full((world, STEPS), usual if before is None else before, np.float32)
    data[:, -10:] = usual
    for rank, value in rows.items():
        data[rank, -10:] = value
    noise = np.random.default_rng(1).uniform(0.8, 1.2, data.shape)
    w = window(world, data=(data * noise).astype(np.float32), steps_seen=40)
    w.record["data"] = w.data[:, -1]
    return w


def test_loading_that_grew_on_all_is_told_once_as_the_storage() -> None:
    (verdict,) = judge_loading(loading({}, usual=80.0, before=5.0), LIMITS)
    assert (verdict.cause, verdict.ranks, verdict.playbook, verdict.host) == ("warning", (), "filesystem_stall", "all")


def test_one_slow_loader_and_one_slow_host() -> None:
    (one,) = judge_loading(loading({3: 90.0}), LIMITS)
    assert (one.ranks, one.playbook, one.host) == ((3,), "dataloader", "host-1")
    (host,) = judge_loading(loading({2: 90.0, 3: 95.0}), LIMITS)
    assert (host.ranks, host.playbook, host.host) == ((), "filesystem_stall", "host-1")


@pytest.mark.parametrize("w", [loading({}), loading({}, usual=80.0), loading({3: 11.0}), loading({3: 40.0}), window(8)])
def test_ordinary_loading_is_not_told(w: Window) -> None:
    assert not judge_loading(w, LIMITS)


def test_one_late_batch_is_not_told() -> None:
    w = loading({})
    w.data[3, -1] = w.record["data"][3] = 900.0
    assert not judge_loading(w, LIMITS)


@pytest.mark.slow
def test_storage_stalls_under_a_job_and_nobody_is_moved(make_job: Any) -> None:
    events: list[dict[str, Any]] = []
    stall = [{"kind": "data", "rank": -1, "step": 40, "seconds": 2.0}]
    result = run_job(make_job("stall", stall, plan={"steps": 48}, hang_seconds=1.0), events.append)
    (fault,) = result.faults
    assert (fault.cause, fault.rank, fault.state) == ("data", None, "repaired")
    assert fault.evidence.where["playbook"] == "filesystem_stall"
    assert result.generation == 1 and sum(event["kind"] == "fault.named" for event in events) == 1
