"""One command on two hosts: what a follower tells reaches the one supervisor, and its orders reach the follower."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ninthsky.guard import protocol as p
from ninthsky.guard.foreign.hosts import Follower, Leader
from ninthsky.guard.foreign.messages import Adopt, Began
from ninthsky.guard.foreign.restarts import Restarts
from ninthsky.guard.foreign.supervisor import Supervisor
from ninthsky.guard.probe.record import Phase, RecordWriter
from ninthsky.guard.seen import Seen
from ninthsky.guard.spec import HostSpec, JobSpec, Watch

HOSTS = [HostSpec(name="a", slots=1, spares=0), HostSpec(name="b", slots=1, spares=0)]


async def until(test: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not test():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def adopt(pid: int, rank: int) -> Adopt:
    return Adopt(pid, rank, 2, 0, "x-1", "2.13")


def test_a_fault_on_another_host_is_named_there_and_its_command_is_started_again(tmp_path: Path) -> None:
    asyncio.run(_two_hosts(tmp_path))


async def _two_hosts(folder: Path) -> None:
    spec = JobSpec(run_id="t", folder=str(folder), command=["x"], world=2, hosts=HOSTS, watch=Watch(action="act"))
    supervisor = Supervisor(spec, lambda kind, **_: None, Restarts(1), 30.0, lambda: "", time.monotonic, time.time)
    follower = Follower(folder, "b")  # before there is anybody to follow
    leader = Leader(folder, ["a", "b"], "127.0.0.1", supervisor)
    writers = [RecordWriter(folder / f"{rank}.record") for rank in range(2)]

    def look() -> bool:
        for writer in writers:
            writer.update(phase=Phase.LOCAL)
        here, there = (Seen(0, 1000 + rank, bytes(writers[rank]._map[:]), 0.0, "S", 1.0, 0.0) for rank in (0, 1))
        supervisor.report("a", [here], 0.0)
        follower.report("b", [there], 0.0)
        supervisor.tick()
        return True

    supervisor.rank("a", 0, adopt(1000, 0))
    follower.rank("b", 0, adopt(1001, 1))
    supervisor.message(1000, Began(0))
    follower.message(1001, Began(0))
    await until(lambda: look() and supervisor.state.generation == 1)
    follower.ended("b", p.Exited(0, 0, 1001, -signal.SIGKILL, 0, "", ""))
    await until(lambda: look() and supervisor.wanted == "again")
    fault = supervisor.state.book.faults[0]
    assert (fault.cause, fault.card, fault.rank) == ("exit", "b/0", 1)

    supervisor.begin()
    again = asyncio.ensure_future(leader.again(2, [77]))
    await until(lambda: look() and follower.wanted == "again")
    assert follower.frozen == [77] and not again.done()
    follower.begin()
    await until(lambda: look() and again.done())
    assert follower.wanted == ""

    ended = asyncio.ensure_future(leader.close(stop=False, frozen=[]))
    await until(lambda: look() and follower.over)
    assert follower.settled
    await ended
    follower.close()
