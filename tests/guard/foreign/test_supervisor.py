"""A foreign command's ranks come, end and say things: who is named, and whether the command is started again."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from ninthsky.guard import protocol as p
from ninthsky.guard.controller.fleet import GROUP_TYPE
from ninthsky.guard.faults import Fault
from ninthsky.guard.foreign.messages import Adopt, Began, NotFinite, Raised
from ninthsky.guard.foreign.restarts import Restarts
from ninthsky.guard.foreign.supervisor import Supervisor
from ninthsky.guard.probe.record import HEADER, Phase, RecordWriter, group_id
from ninthsky.guard.seen import Seen
from ninthsky.guard.spec import HostSpec, JobSpec, Watch

GROUP = group_id("0")
CLOSED = "RuntimeError: [gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:43950"


class Fleet:
    """Three made ranks under a supervisor, on a made clock."""

    def __init__(self, folder: Path, action: Any = "act", restarts: int = 2) -> None:
        self.folder, self.now, self.events = folder, 100.0, []
        watch = Watch(action=action)
        spec = JobSpec(
            run_id="t", folder=str(folder), command=["x"], world=3, hosts=[HostSpec(name="h", slots=3, spares=0)], watch=watch
        )
        self.supervisor = Supervisor(
            spec,
            lambda kind, **fields: self.events.append(kind),
            Restarts(restarts),
            30.0,
            lambda: "",
            lambda: self.now,
            lambda: self.now,
        )
        self.writers: list[RecordWriter] = []
        self.cpu = 1.0

    events: list[str]

    def start(self, pids: int, began: int = 0) -> None:
        self.pids = [pids + rank for rank in range(3)]
        for writer in self.writers:
            writer.close()
        self.writers = [RecordWriter(self.folder / f"{pid}.record") for pid in self.pids]
        for rank, pid in enumerate(self.pids):
            self.writers[rank].update(rank=rank, step=began, phase=Phase.LOCAL)
            self.supervisor.rank("h", rank, Adopt(pid, rank, 3, rank, "t-1", "2.13"))
        for pid in self.pids:
            self.supervisor.message(pid, Began(began))
        for step in range(began, began + 6):
            for writer in self.writers:
                writer.update(step=step)
                writer.complete(GROUP, writer.enqueue(GROUP, 5))
            self.turn()

    def turn(self, seconds: float = 0.1, states: str = "SSS", ages: tuple[float, ...] = (0.0, 0.0, 0.0)) -> None:
        self.now += seconds
        seen = []
        for rank, pid in enumerate(self.pids):
            if pid in self.supervisor._of_pid:
                raw = bytes(self.writers[rank]._map[:])
                beat = self.writers[rank].state.heartbeat
                assert HEADER.unpack_from(raw)[-1] == beat or ages[rank] == 0.0
                seen.append(Seen(rank, pid, raw, ages[rank], states[rank], self.cpu, 0.0))
        self.supervisor.report("h", seen, 0.0)
        self.supervisor.tick()

    def end(self, rank: int, status: int) -> None:
        self.supervisor.ended("h", p.Exited(0, rank, self.pids[rank], status, 0, "", "", bytes(self.writers[rank]._map[:])))

    @property
    def faults(self) -> list[Fault]:
        return self.supervisor.state.book.faults

    @property
    def named(self) -> list[tuple[str, int | None]]:
        return [(fault.cause, fault.rank) for fault in self.faults]


def _state(fleet: Fleet) -> str:
    return fleet.faults[0].state


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


def test_the_killed_rank_is_named_and_its_echoes_are_not(fleet: Fleet) -> None:
    fleet.start(1000)
    fleet.supervisor.message(fleet.pids[0], Raised(CLOSED, "ddp.py:50", True, CLOSED))
    fleet.end(0, 1)  # heard before the kill behind it
    fleet.turn()
    assert fleet.named == []
    fleet.end(1, -signal.SIGKILL)
    fleet.end(2, -signal.SIGTERM)
    fleet.turn()
    assert fleet.named == [("exit", 1)] and fleet.supervisor.wanted == "again"
    fleet.supervisor.begin()
    fleet.start(2000, began=4)
    assert fleet.faults[0].state == "repaired" and fleet.faults[0].resume_step == 3 and fleet.faults[0].steps_redone == 2
    assert fleet.events.count("joined") == 2


def test_a_frozen_rank_is_named_and_is_the_first_to_be_ended(fleet: Fleet) -> None:
    fleet.start(1000)
    for rank in (0, 1):
        fleet.writers[rank].enqueue(GROUP, 5)
    for _ in range(30):
        fleet.turn(states="SST", ages=(0.0, 0.0, 2.6))
    assert fleet.named == [("frozen", 2)] and fleet.supervisor.frozen == [1002]
    assert any(fact.name == "process" and fact.value == "1002" for fact in fleet.faults[0].evidence.facts)


def test_advise_only_tells_and_a_rank_that_wakes_closes_the_fault(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, action="advise")
    fleet.start(1000)
    for _ in range(3):
        fleet.turn(states="SST", ages=(0.0, 0.0, 2.6))
    assert fleet.named == [("frozen", 2)] and fleet.supervisor.wanted == "" and fleet.faults[0].state == "advised"
    for writer in fleet.writers:
        writer.update(step=9)
    fleet.turn()
    fleet.turn()
    assert _state(fleet) == "repaired" and "went on by itself" in fleet.faults[0].evidence.remedy


@pytest.mark.parametrize("error", ["ValueError: a mistake", "OSError: [Errno 28] No space left on device"])
def test_a_mistake_of_the_script_is_not_started_again_for_ever(fleet: Fleet, error: str) -> None:
    for pids in (1000, 2000):
        fleet.start(pids)
        fleet.supervisor.message(fleet.pids[1], Raised(error, "train.py:7", False, f"Traceback\n{error}"))
        fleet.end(1, 1)
        fleet.turn()
        if fleet.supervisor.wanted == "stop":
            break
        fleet.supervisor.begin()
    assert fleet.supervisor.wanted == "stop" and fleet.supervisor.state.stage == "failed"
    assert "not started again" in fleet.faults[-1].evidence.remedy


def test_restarts_are_counted(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, restarts=1)
    for pids in (1000, 2000):
        fleet.start(pids)
        fleet.end(0, -signal.SIGKILL)
        fleet.turn()
        if pids == 1000:
            assert fleet.supervisor.wanted == "again"
            fleet.supervisor.begin()
    assert fleet.supervisor.wanted == "stop" and "--restarts" in fleet.faults[-1].evidence.remedy


def test_of_bad_gradients_the_rank_that_had_them_before_the_reduce_is_named(fleet: Fleet) -> None:
    fleet.start(1000)
    fleet.supervisor.message(fleet.pids[2], NotFinite(5, True))
    fleet.turn()
    assert fleet.named == []  # the others may have them too: they are not past the step
    for writer in fleet.writers:
        writer.update(step=6)
    fleet.turn()
    assert fleet.named == [("nonfinite", 2)]


def test_different_collectives_are_told_and_nobody_is_blamed(fleet: Fleet) -> None:
    fleet.start(1000)
    for rank, op in ((0, 5), (1, 77), (2, 5)):
        fleet.writers[rank].enqueue(GROUP, op)
    fleet.turn()
    fleet.end(1, -signal.SIGABRT)  # as gloo does
    fleet.turn()
    assert fleet.named == [("mismatch", None)] and fleet.supervisor.wanted == "stop"
    assert any(fact.value == "1" for fact in fleet.faults[0].evidence.facts)


def test_ranks_that_rest_between_collectives_are_no_hang(fleet: Fleet) -> None:
    fleet.start(1000)
    for _ in range(400):
        fleet.turn(0.3)
    assert fleet.named == []


def test_a_rank_that_ended_well_may_be_waited_for(fleet: Fleet) -> None:
    fleet.start(1000)
    fleet.end(1, 0)
    for rank in (0, 2):
        fleet.writers[rank].enqueue(GROUP, 5)
    for _ in range(400):
        fleet.turn(0.1)
    assert fleet.named == [("exit", 1)] and "status 0" in fleet.faults[0].evidence.verdict


def test_a_launcher_that_starts_its_ranks_again_by_itself_is_followed(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, action="advise")
    fleet.start(1000)
    fleet.end(0, -signal.SIGKILL)
    fleet.turn()
    for rank in (1, 2):
        fleet.end(rank, -signal.SIGTERM)
    assert fleet.faults[0].state == "advised"
    fleet.start(2000, began=3)
    assert fleet.supervisor.state.generation == 2 and _state(fleet) == "repaired"


def test_what_a_person_ends_is_no_fault(fleet: Fleet) -> None:
    fleet.start(1000)
    fleet.supervisor.stop_asked()
    for rank in range(3):
        fleet.end(rank, -signal.SIGTERM)
    fleet.turn(5.0)
    fleet.supervisor.command_ended(-signal.SIGTERM)
    assert fleet.named == [] and fleet.supervisor.state.stage == "failed"


def test_completion_in_another_thread_shares_no_bytes_with_entering() -> None:
    assert GROUP_TYPE.fields is not None
    assert [GROUP_TYPE.fields[name][1] for name in ("id", "enqueued", "completed", "op")] == [0, 8, 12, 16]


def test_what_a_person_approves_is_done(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, action="advise")
    fleet.start(1000)
    for _ in range(3):
        fleet.turn(states="SST", ages=(0.0, 0.0, 2.6))
    fault = fleet.faults[0]
    assert not fleet.supervisor.approve(fault.id, 1.0, "ada")
    assert fleet.supervisor.approve(fault.id, fault.timeline.named, "ada")
    assert fleet.supervisor.wanted == "again" and fleet.supervisor.frozen == [1002]
    assert "approved by ada" in fault.evidence.remedy
