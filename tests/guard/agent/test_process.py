"""What an agent does by itself: the order of what a rank hears, fencing, and shards of an ended generation."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import xxhash

from ninthsky.guard import protocol as p
from ninthsky.guard.agent.process import Agent
from ninthsky.guard.agent.spawner import Process
from ninthsky.guard.agent.store import shard_name
from ninthsky.guard.keys import CONTROLLER, forge
from ninthsky.guard.probe import messages as m
from ninthsky.guard.spec import HostSpec, JobSpec


def with_agent(tmp_path: Path, work: Callable[[Agent, list[tuple[int, Any]], list[Any]], Awaitable[None]]) -> None:
    """An agent with three sleeping processes; what it would send to ranks and to the controller is noted down instead."""

    async def run() -> None:
        command = [sys.executable, "-c", "import time; time.sleep(99)"]
        folder, hosts = str(tmp_path / "job"), [HostSpec(name="a", slots=2)]
        spec = JobSpec(run_id="agent-test", folder=folder, command=command, world=2, hosts=hosts, memory=str(tmp_path))
        agent = Agent(spec, "a", forge(tmp_path / "keys", ["a"])["a"], {CONTROLLER: ("127.0.0.1", 9)})
        to_ranks: list[tuple[int, Any]] = []
        to_controller: list[Any] = []

        def to_rank(process: Process, message: m.ToRank) -> bool:
            to_ranks.append((process.slot, message))
            return True

        def to_boss(message: p.ToController) -> bool:
            to_controller.append(message)
            return True

        agent.lines.send = to_rank  # type: ignore[method-assign]
        agent.controller.send = to_boss  # type: ignore[method-assign]
        for slot in range(3):
            agent._start(slot)
        try:
            await asyncio.wait_for(work(agent, to_ranks, to_controller), 30)
        finally:
            agent.spawner.end_all()
            agent.exchange.close()
            agent.controller.close()
            agent._context.destroy(linger=0)

    asyncio.run(run())


def form(agent: Agent, generation: int, slots: list[int], step: int = -1, source: str = "", xxh3: str = "") -> p.Form:
    places = []
    for rank, slot in enumerate(slots):
        assign = m.Assign(generation, rank, 2, step, rank == 0, "127.0.0.1", ["a", "a"])
        places.append(p.Place(slot, agent.spawner.processes[slot].pid, assign, source, xxh3))
    return p.Form(generation, step, places, [p.Peer("a", "127.0.0.1", agent.exchange.listener.port)])


def heard(to_ranks: list[tuple[int, Any]], slot: int) -> list[Any]:
    return [message for to, message in to_ranks if to == slot]


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.01)


def test_a_rank_hears_assign_before_rendezvous_though_its_state_comes_late(tmp_path: Path) -> None:
    async def work(agent: Agent, to_ranks: list[tuple[int, Any]], _: list[Any]) -> None:
        there = asyncio.Event()

        async def slow_fetch(info: p.ShardInfo, source: str) -> None:
            await there.wait()

        agent.exchange.fetch = slow_fetch  # type: ignore[method-assign]
        agent.store.give = lambda info, folder: True  # type: ignore[method-assign]
        agent._do(form(agent, 1, [0, 1], 5, "b", "x"))
        where = m.Rendezvous(1, "127.0.0.1", 7)
        for slot in (0, 1):
            agent._do(p.ToSlots([(slot, agent.spawner.processes[slot].pid)], where))
        await asyncio.sleep(0.05)
        assert not to_ranks
        there.set()
        await until(lambda: len(to_ranks) == 4)
        for slot in (0, 1):
            assert [type(message) for message in heard(to_ranks, slot)] == [m.Assign, m.Rendezvous]

    with_agent(tmp_path, work)


def test_a_placement_that_a_newer_generation_overtook_is_dropped(tmp_path: Path) -> None:
    async def work(agent: Agent, to_ranks: list[tuple[int, Any]], to_controller: list[Any]) -> None:
        there = asyncio.Event()

        async def slow_fetch(info: p.ShardInfo, source: str) -> None:
            await there.wait()

        agent.exchange.fetch = slow_fetch  # type: ignore[method-assign]
        agent.store.give = lambda info, folder: True  # type: ignore[method-assign]
        agent._do(form(agent, 1, [0, 1], 5, "b", "x"))
        agent._do(p.Prepare(2, "a fault during the regroup"))
        there.set()
        await asyncio.sleep(0.05)
        assert [type(message) for message in heard(to_ranks, 0)] == [m.Abort]
        assert isinstance(to_controller[-1], p.Inventory) and to_controller[-1].generation == 2

    with_agent(tmp_path, work)


def test_who_is_not_placed_again_is_fenced_and_whatever_it_says_is_not_passed_on(tmp_path: Path) -> None:
    async def work(agent: Agent, to_ranks: list[tuple[int, Any]], to_controller: list[Any]) -> None:
        agent._do(form(agent, 1, [0, 1]))
        await until(lambda: len(to_ranks) == 2)
        agent._do(p.Prepare(2, "rank 1 froze"))
        agent._do(form(agent, 2, [0, 2]))
        assert heard(to_ranks, 1)[-1] == m.Fenced(2)
        before = len(to_controller)
        for message in (m.Joined(1, 1, 0), m.MayCommit(1, 3), m.Finished(1, 1, {})):
            agent._from_rank(agent.spawner.processes[1], message)
        assert len(to_controller) == before
        assert heard(to_ranks, 1)[-3:] == [m.Fenced(2)] * 3

    with_agent(tmp_path, work)


def test_shards_are_taken_from_the_current_generation_only(tmp_path: Path) -> None:
    async def work(agent: Agent, to_ranks: list[tuple[int, Any]], _: list[Any]) -> None:
        agent._do(form(agent, 1, [0, 1]))
        await until(lambda: len(to_ranks) == 2)
        old, good = agent.spawner.processes[1], agent.spawner.processes[0]

        def write(process: Process, rank: int, data: bytes) -> m.Shard:
            (process.folder / shard_name(rank, 0)).write_bytes(data)
            return m.Shard(1, rank, 0, len(data), xxhash.xxh3_64_hexdigest(data))

        agent._from_rank(good, write(good, 0, b"state"))
        assert heard(to_ranks, 0)[-1] == m.ShardHeld(0, 0), "alone, the agent itself holds it"
        agent._do(p.Prepare(2, "rank 1 froze"))
        agent._from_rank(old, write(old, 1, b"too late"))
        assert agent.lines.refused["stale shard"] == 1
        assert [info.rank for info in agent.store.inventory()] == [0]

    with_agent(tmp_path, work)


def test_a_damaged_shard_is_dropped_and_told(tmp_path: Path) -> None:
    async def work(agent: Agent, to_ranks: list[tuple[int, Any]], to_controller: list[Any]) -> None:
        agent._do(form(agent, 1, [0, 1]))
        await until(lambda: len(to_ranks) == 2)
        process = agent.spawner.processes[0]
        for step in (4, 5):
            (process.folder / shard_name(0, step)).write_bytes(b"state")
            agent._from_rank(process, m.Shard(1, 0, step, 5, xxhash.xxh3_64_hexdigest(b"state")))
        agent._do(form(agent, 2, [0, 1], 5))
        agent._from_rank(process, m.Damaged(2, 0, 5, "its checksum is wrong"))
        told = to_controller[-1]
        assert isinstance(told, p.PlaceFailed) and (told.generation, told.rank) == (2, 0)
        assert [info.step for info in agent.store.inventory()] == [4]
        agent._from_rank(process, m.Damaged(1, 0, 4, "said in an earlier generation"))
        assert to_controller[-1] is told

    with_agent(tmp_path, work)


def test_a_host_that_was_replaced_fences_all_its_ranks_and_starts_nothing_more(tmp_path: Path) -> None:
    async def work(agent: Agent, to_ranks: list[tuple[int, Any]], _: list[Any]) -> None:
        agent._do(form(agent, 1, [0, 1]))
        await until(lambda: len(to_ranks) == 2)
        agent._do(p.Refused(3))
        assert [heard(to_ranks, slot)[-1] for slot in range(3)] == [m.Fenced(3)] * 3
        agent.spawner.kill(agent.spawner.processes[0])
        await until(lambda: 0 not in agent.spawner.processes)
        await asyncio.sleep(0.7)
        assert 0 not in agent.spawner.processes

    with_agent(tmp_path, work)
