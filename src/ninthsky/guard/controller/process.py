"""The controller's process: sockets and clock around a Conductor. Killed and started again, it goes on from its journal.

In a job with a standby there are two of them, alike: each follows the other until the lease is its own (lease.py).
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import zmq.asyncio

from ninthsky.errors import FAILED, OK, PARTIAL
from ninthsky.guard import protocol as p
from ninthsky.guard.agent.spawner import watch_first
from ninthsky.guard.controller.conductor import Conductor
from ninthsky.guard.controller.copying import Replica, Source
from ninthsky.guard.controller.lease import Lease
from ninthsky.guard.controller.outbox import Outbox
from ninthsky.guard.controller.outward import Outward
from ninthsky.guard.keys import CONTROLLER, STANDBY, Keyring, load_keys
from ninthsky.guard.spec import JobSpec, load_spec
from ninthsky.guard.wire import Caller, Listener, spare_memory
from ninthsky.run.folder import append_line, read_json, write_json

TICK_SECONDS = 0.1
GARBAGE = 200_000  # new objects, before cycles are looked for
GOODBYE_SECONDS = 0.3  # for the last commands to leave
REFUSALS_SECONDS = 2.0  # between two words about strangers
STOOD_STILL = 1.0  # seconds between two ticks; after that the agents are heard first, then judged
FOLLOW_SECONDS = 1.0


class Controller:
    """Serves until the job is over; `run` returns an exit status.

    `me`: CONTROLLER or STANDBY. `peer`: address and port of the other one, where there is one to follow.
    `alone`: a person vouches that the other one is dead; any one agent's grant is enough.
    """

    def __init__(
        self,
        spec: JobSpec,
        keys: Keyring,
        port: int,
        *,
        me: str = CONTROLLER,
        peer: tuple[str, int] | None = None,
        alone: bool = False,
    ) -> None:
        self.spec, self.me = spec, me
        self.folder = Path(spec.folder)
        self._keys, self._peer = keys, peer
        self._context = zmq.asyncio.Context()
        self._address = spec.standby.address if me == STANDBY and spec.standby else spec.watch.bind
        self.listener: Listener[p.ToLeader] = Listener(self._context, keys, p.ToLeader, self._address, port)
        self._id = f"{os.getpid()}-{time.time_ns()}"
        self._hosts = [host.name for host in spec.hosts]
        self._outboxes = {host: Outbox(self._id) for host in self._hosts}
        self.lease = Lease(me, self._hosts, waits=me == STANDBY, alone=alone) if spec.standby else None
        self._started = time.monotonic()
        self._refused = self.listener.refused.copy()
        self._heard: Callable[[dict[str, Any]], None] | None = None  # an event of the start itself reaches the files only
        self._source = Source(self.folder, self._id, self._copy)
        self._stop_wanted = False
        self._parent = os.getppid()

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        self._tell_presence()
        try:
            if self.lease is not None and not await self._follow(self.lease):
                return OK
            return await self._lead()
        finally:
            self.listener.close()
            self._context.destroy(linger=0)

    # -- following ----------------------------------------------------------------------------------------------------

    async def _follow(self, lease: Lease) -> bool:
        """Until the lease is won: True. False: the job is over, or this process was told to end."""
        replica = Replica(self.folder)
        listening = asyncio.ensure_future(self._hear_voters(lease))
        copying = asyncio.ensure_future(self._copy_from(replica))
        try:
            while not lease.leading:
                if self._stop_wanted or os.getppid() != self._parent or replica.ended():
                    return False
                self._claim(lease)
                done, _ = await asyncio.wait({listening, copying}, timeout=TICK_SECONDS)
                for task in done:
                    task.result()
        finally:
            listening.cancel()
            copying.cancel()
            replica.close()
        return True

    async def _hear_voters(self, lease: Lease) -> None:
        while not lease.leading:
            host, message = await self.listener.receive()
            if isinstance(message, p.Standing) and host in self._outboxes:
                lease.heard(host, message)

    async def _copy_from(self, replica: Replica) -> None:
        if self._peer is None:
            await asyncio.Event().wait()
            return
        other = CONTROLLER if self.me == STANDBY else STANDBY
        caller: Caller[p.Copy] = Caller(self._context, self._keys, other, p.Copy, *self._peer)
        try:
            asking = asyncio.ensure_future(_ask(caller, replica))
            while True:
                replica.take(await caller.receive())
        finally:
            asking.cancel()
            caller.close()

    def _claim(self, lease: Lease) -> None:
        claim = lease.claim()
        if claim is not None:
            for host in lease.asked():
                self.listener.send(host, p.Numbered(self._id, 0, claim, claim.term))

    # -- leading ------------------------------------------------------------------------------------------------------

    async def _lead(self) -> int:
        term = self.lease.term if self.lease is not None else 0
        self._outboxes = {host: Outbox(self._id, term) for host in self._hosts}
        self.conductor = Conductor(self.spec, self._send, self._event, term=term)
        self.state = self.conductor.state
        self._outward = Outward(self.state, self.conductor.approve)
        self._heard = self._outward.heard
        if self.lease is not None:
            self.state.journal.write("term", controller=self.me)
            self._event("controller.leads", controller=self.me, term=term)
            self._tell_presence()
            for host in self._hosts:
                self._send(host, p.WhoAreYou())
        receiving = asyncio.ensure_future(self._receive())
        try:
            await self._watch(receiving)
            if self.lease is not None and self.lease.superseded_by:
                return PARTIAL
            self._source.pump()
            await asyncio.sleep(GOODBYE_SECONDS)
            self._outward.close()
        finally:
            receiving.cancel()
        self._write_result()
        return OK if self.state.stage == "done" else FAILED

    async def _watch(self, receiving: asyncio.Future[None]) -> None:
        """Until the job is over, or another controller leads."""
        lease = self.lease
        ticked = time.monotonic()
        judge_at = tell_at = 0.0
        while not self.state.over:
            now = time.monotonic()
            if lease is not None:
                self._claim(lease)
                if self.state.stage in {"form", "run"}:
                    lease.declare(self.state.generation, self.state.roster.live())
                if lease.superseded_by:
                    print(f"{lease.superseded_by} leads now: {self.me} of term {lease.term} steps back", flush=True)
                    return
            if now - ticked > STOOD_STILL or not self._may_act():
                judge_at = now + STOOD_STILL
            ticked = now
            if now >= judge_at:
                self.conductor.tick()
                self._outward.tick()
            self._source.pump()
            if self._refused != self.listener.refused and now >= tell_at:
                self._refused, tell_at = self.listener.refused.copy(), now + REFUSALS_SECONDS
                self._event("refused", host=self.me, counts=dict(self._refused))
            if self._stop_wanted or os.getppid() != self._parent:
                self.conductor.stop("stopped by a person or by the end of the process that started it")
                continue
            done, _ = await asyncio.wait({receiving}, timeout=TICK_SECONDS)
            if done:
                receiving.result()

    def _may_act(self) -> bool:
        return self.lease is None or self.lease.holds()

    async def _receive(self) -> None:
        while True:
            host, message = await self.listener.receive()
            if isinstance(message, p.Follow):
                self._source.follow(message)
            elif host not in self._outboxes:
                self.listener.refused["not a host of this job"] += 1
            elif isinstance(message, p.Standing):
                if self.lease is not None:
                    self.lease.heard(host, message)
            elif self._may_act():  # else it is asked for again: by then it may be another's to hear
                if isinstance(message, p.Report):
                    for numbered in self._outboxes[host].acknowledge(message.controller, message.commands, time.monotonic()):
                        self.listener.send(host, numbered)
                self.conductor.handle(host, message)

    def _send(self, host: str, command: p.Command) -> None:
        numbered = self._outboxes[host].pack(command, time.monotonic())
        if self._may_act():
            self.listener.send(host, numbered)

    def _copy(self, copy: p.Copy) -> None:
        self.listener.send(STANDBY if self.me == CONTROLLER else CONTROLLER, copy)

    def _event(self, kind: str, **fields: Any) -> None:
        record = {"time": time.time(), "kind": kind, "job": self.spec.run_id, **fields}
        append_line(self.folder / "events.jsonl", record)
        if self.spec.events:
            append_line(Path(self.spec.events), record)
        if self._heard is not None:
            self._heard(record)

    def _stop(self) -> None:
        self._stop_wanted = True

    def _tell_presence(self) -> None:
        write_json(
            self.folder / f"{self.me}.json",
            {
                "address": self._address,
                "port": self.listener.port,
                "pid": os.getpid(),
                "id": self._id,
                "leads": self.lease is None or self.lease.leading,
            },
        )

    def _write_result(self) -> None:
        state = self.state
        usage = resource.getrusage(resource.RUSAGE_SELF)
        write_json(
            self.folder / "result.json",
            {
                "ok": state.stage == "done",
                "reason": state.reason if state.stage == "failed" else "",
                "generation": state.generation,
                "committed": state.committed,
                "results": {str(rank): result for rank, result in sorted(state.results.items())},
                "faults": [fault.id for fault in state.book.faults],
                "refused": dict(self.listener.refused),
                "controller": {
                    "seconds": round(time.monotonic() - self._started, 3),
                    "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 3),
                    "mb": round(usage.ru_maxrss / 1024, 1),
                },
            },
        )


async def _ask(caller: Caller[p.Copy], replica: Replica) -> None:
    while True:
        caller.send(replica.follow())
        await asyncio.sleep(FOLLOW_SECONDS)


def main(
    job: Path,
    keys: Path,
    port: int,
    *,
    standby: bool = False,
    peer: tuple[str, int] | None = None,
    alone: bool = False,
) -> int:
    """`n9 guard controller`. Port 0: the port of an earlier start, read from the job's folder, or any free one."""
    watch_first()
    spare_memory()
    # Of 18,432 ranks there are a million objects and hardly a cycle among them: to look for those costs more than to judge.
    gc.set_threshold(GARBAGE, 50, 100)

    async def work() -> int:
        spec, me = load_spec(job), STANDBY if standby else CONTROLLER
        if standby and spec.standby is not None and spec.standby.folder:
            # Where the run's events lie, only the first host knows.
            spec = msgspec.structs.replace(spec, folder=spec.standby.folder, events=None)
        before = read_json(Path(spec.folder) / f"{me}.json")
        known = port or (before["port"] if before else 0)
        return await Controller(spec, load_keys(keys), known, me=me, peer=peer, alone=alone).run()

    return asyncio.run(work())
