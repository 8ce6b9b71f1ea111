"""One command on several hosts: `n9 guard run` on each of them, with the same folder. The first one decides, the others follow.

Ten times a second a follower tells all that it knows of this attempt, and is answered with all that is wanted of it; so a lost
message or connection loses nothing. Without the first host its command goes on, unjudged. Keys and address are in the folder.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec
import zmq.asyncio

from ninthsky.guard import protocol as p
from ninthsky.guard.foreign.ends import PATIENCE
from ninthsky.guard.foreign.messages import Adopt, FromForeign
from ninthsky.guard.foreign.supervisor import Supervisor
from ninthsky.guard.keys import CONTROLLER, forge, load_keys
from ninthsky.guard.seen import Seen
from ninthsky.guard.wire import Caller, Listener
from ninthsky.run.folder import read_json, write_json

WHERE = "controller.json"
ANSWER_SECONDS = 3.0  # without an answer the address is read again: the first host may have been started anew
TOGETHER_SECONDS = 15.0  # for the other hosts' commands to end, or to be started again
GOODBYE_SECONDS = 0.5


class Look(msgspec.Struct, frozen=True, tag=True):
    """All that a host knows of its ranks in this attempt. `status`: of its command, once it has ended."""

    attempt: int
    came: list[tuple[int, Adopt]]
    said: list[tuple[int, FromForeign]]
    gone: list[p.Exited]
    seen: list[Seen]
    late: float
    status: int | None
    stopped: bool


class Order(msgspec.Struct, frozen=True, tag=True):
    """Which attempt is to run; whether to end it, or that all is over. `frozen`: processes to be ended first."""

    attempt: int
    stop: bool
    over: bool
    frozen: list[int]


class Leader:
    """Takes in what other hosts tell, for the one supervisor."""

    def __init__(self, folder: Path, hosts: Sequence[str], bind: str, supervisor: Supervisor) -> None:
        """`hosts`: all of them, the first one is here."""
        keys = forge(folder / "keys", list(hosts))
        self._context = zmq.asyncio.Context()
        self._listener: Listener[Look] = Listener(self._context, load_keys(keys[CONTROLLER]), Look, bind, 0)
        write_json(folder / WHERE, {"address": bind, "port": self._listener.port, "pid": os.getpid()})
        self._supervisor, self._others = supervisor, set(hosts[1:])
        self._looks: dict[str, Look] = {}
        self._order = Order(1, False, False, [])
        self._ended_at = 0.0
        self._task = asyncio.ensure_future(self._serve())

    def ready(self, status: int) -> bool:
        """Whether this host's command, which has ended, may be judged: the other hosts' had time to end too."""
        self._ended_at = self._ended_at or time.monotonic()
        waited = time.monotonic() - self._ended_at
        return waited > (TOGETHER_SECONDS if status == 0 else PATIENCE) or (status == 0 and self._all_ended)

    async def again(self, attempt: int, frozen: list[int]) -> None:
        """Until every other host has started that attempt, or had time to."""
        self._ended_at = 0.0
        self._order = Order(attempt, False, False, frozen)
        deadline = time.monotonic() + TOGETHER_SECONDS
        while time.monotonic() < deadline and any(self._attempt(host) < attempt for host in self._others):
            await asyncio.sleep(0.02)

    async def close(self, *, stop: bool, frozen: list[int]) -> None:
        """All is over: the others are told, and their commands ended where they are not to go on."""
        self._order = Order(self._order.attempt, stop, not stop, frozen)
        deadline = time.monotonic() + (TOGETHER_SECONDS if stop else GOODBYE_SECONDS)
        while time.monotonic() < deadline and not (stop and self._all_ended):
            await asyncio.sleep(0.05)
        self._task.cancel()
        self._listener.close()
        self._context.destroy(linger=0)

    @property
    def _all_ended(self) -> bool:
        return all(self._attempt(host) == self._order.attempt and self._looks[host].status is not None for host in self._others)

    def _attempt(self, host: str) -> int:
        return self._looks[host].attempt if host in self._looks else 0

    async def _serve(self) -> None:
        while True:
            host, look = await self._listener.receive()
            if host not in self._others:
                self._listener.refused["not a host of this job"] += 1
                continue
            self._looks[host] = look
            if look.attempt == self._order.attempt:
                self._take_in(host, look)
            self._listener.send(host, self._order)

    def _take_in(self, host: str, look: Look) -> None:
        for slot, adopt in look.came:
            self._supervisor.rank(host, slot, adopt)
        for pid, message in look.said:
            self._supervisor.message(pid, message)
        self._supervisor.report(host, look.seen, look.late)
        for exited in look.gone:
            self._supervisor.ended(host, exited)
        if look.stopped:
            self._supervisor.stop_asked()


class Follower:
    """In the place of a supervisor on every host but the first."""

    def __init__(self, folder: Path, host: str) -> None:
        self.wanted: Literal["", "again", "stop"] = ""
        self.frozen: list[int] = []
        self.over = False
        self._folder, self._host = folder, host
        self._context = zmq.asyncio.Context()
        self._caller: Caller[Order] | None = None
        self._answered = time.monotonic()
        self._attempt, self._stopped = 1, False
        self._status: int | None = None
        self._ended_at = 0.0
        self._clear()
        self._task = asyncio.ensure_future(self._obey())

    def _clear(self) -> None:
        self._came: dict[int, tuple[int, Adopt]] = {}
        self._said: list[tuple[int, FromForeign]] = []
        self._gone: list[p.Exited] = []

    @property
    def settled(self) -> bool:
        """Whether nobody will want this host's command, which has ended, to be started again."""
        silent = time.monotonic() - max(self._answered, self._ended_at) > ANSWER_SECONDS
        return self.over or silent or time.monotonic() - self._ended_at > 2 * TOGETHER_SECONDS

    def rank(self, host: str, slot: int, adopt: Adopt) -> None:
        self._came[adopt.pid] = (slot, adopt)

    def message(self, pid: int, message: FromForeign) -> None:
        self._said.append((pid, message))

    def ended(self, host: str, exited: p.Exited) -> None:
        self._gone.append(exited)

    def report(self, host: str, seen: list[Seen], late: float) -> None:
        """Tells everything."""
        if self._caller is not None:
            said = list(self._came.values())
            self._caller.send(Look(self._attempt, said, self._said, self._gone, seen, late, self._status, self._stopped))

    def tick(self) -> None:
        pass  # nothing is judged here

    def command_ended(self, status: int) -> None:
        self._ended_at = time.monotonic() if self._status is None else self._ended_at
        self._status = status

    def stop_asked(self) -> None:
        self._stopped = True

    def begin(self) -> None:
        """The command is started again."""
        self._clear()
        self._attempt, self._status, self.wanted, self.frozen = self._next, None, "", []

    async def goodbye(self, status: int) -> None:
        """The command was ended, as it was ordered: the first host waits to hear of it."""
        self.command_ended(status)
        self.report(self._host, [], 0.0)
        await asyncio.sleep(GOODBYE_SECONDS)

    def close(self) -> None:
        self._task.cancel()
        if self._caller is not None:
            self._caller.close()
        self._context.destroy(linger=0)

    _next = 1

    async def _obey(self) -> None:
        while True:
            where = read_json(self._folder / WHERE)
            keys = self._folder / "keys" / f"{self._host}.json"
            if where is None or not keys.exists():
                await asyncio.sleep(0.2)
                continue
            self._caller = Caller(self._context, load_keys(keys), CONTROLLER, Order, where["address"], where["port"])
            try:
                while True:
                    self._take(await asyncio.wait_for(self._caller.receive(), ANSWER_SECONDS))
            except TimeoutError:
                self._caller.close()
                self._caller = None

    def _take(self, order: Order) -> None:
        self._answered = time.monotonic()
        self.over = order.over
        if order.stop:
            self.wanted, self.frozen = "stop", order.frozen
        elif order.attempt > self._attempt and not self.wanted:
            self.wanted, self.frozen, self._next = "again", order.frozen, order.attempt
