"""The agent's part of self-tests: keeps the slot free while its card is tested, and is one end of a link test."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from ninthsky.guard import protocol as p
from ninthsky.guard.agent.spawner import Spawner
from ninthsky.guard.selftest import link
from ninthsky.guard.selftest.card import command_of, examine
from ninthsky.guard.spec import JobSpec

END_SECONDS = 60.0  # until the process that was there before has ended
POLL_SECONDS = 0.1


class Tester:
    """`send(make)` sends the event that `make(number)` gives; `start(slot)` starts the slot's next process."""

    def __init__(
        self,
        spec: JobSpec,
        host: str,
        spawner: Spawner,
        send: Callable[[Callable[[int], p.Event]], None],
        start: Callable[[int], None],
    ) -> None:
        self._spec, self._host, self._spawner = spec, host, spawner
        self._send, self._start = send, start
        self._held: set[int] = set()
        self._turn = asyncio.Lock()  # one card of a host at a time

    def holds(self, slot: int) -> bool:
        """Whether the slot is kept free now."""
        return slot in self._held

    async def card(self, order: p.SelfTest) -> None:
        """Does what was ordered and tells how it ended."""
        if order.slot in self._held:
            self._tell(order.test, 0, 0, "its card is being tested already", {})
            return
        if not order.after:
            await self._run(order)
            return
        self._held.add(order.slot)
        try:
            if await self._is_free(order.slot, order.after):
                await self._run(order)
            else:
                self._tell(order.test, 0, 0, f"process {order.after} did not end within {END_SECONDS:.0f} s", {})
        finally:
            self._held.discard(order.slot)
        if order.slot not in self._spawner.processes:
            self._start(order.slot)

    async def link(self, order: p.LinkTest) -> None:
        """One end of it."""
        try:
            if order.port:
                found = await link.call(order.token, order.address, order.port)
            else:
                serving = lambda port: self._send(lambda number: p.LinkServing(number, order.test, port))  # noqa: E731
                found = await link.serve(order.token, order.address, serving)
        except OSError as error:
            self._tell(order.test, 0, 1, str(error), {})
            return
        damaged = f"{found.damaged} of {found.pieces} pieces came otherwise than they were sent" if found.damaged else ""
        self._tell(order.test, int(not found.damaged), 1, damaged, found.figures())

    async def _run(self, order: p.SelfTest) -> None:
        env = {**os.environ, **self._spec.env, "N9_SLOT": str(order.slot), "N9_HOST": self._host}
        async with self._turn:
            await self._test(order, env)

    async def _test(self, order: p.SelfTest, env: dict[str, str]) -> None:
        passed = 0
        figures: dict[str, float] = {}
        for number in range(1, order.times + 1):
            outcome = await examine(command_of(self._spec.vet), env)
            figures |= outcome.figures
            if outcome.passed is None:
                self._tell(order.test, passed, passed, outcome.problem, figures)
                return
            if not outcome.passed:
                self._tell(order.test, passed, number, outcome.problem, figures)
                return
            passed += 1
        self._tell(order.test, passed, passed, "", figures)

    async def _is_free(self, slot: int, pid: int) -> bool:
        """Waits for the end of what is in the slot. A process that was started there since is ended: its card is in doubt."""
        waited = 0.0
        while (process := self._spawner.processes.get(slot)) is not None:
            if process.pid != pid:
                self._spawner.kill(process)
            if waited >= END_SECONDS:
                return False
            await asyncio.sleep(POLL_SECONDS)
            waited += POLL_SECONDS
        return True

    def _tell(self, test: int, passed: int, times: int, problem: str, figures: dict[str, float]) -> None:
        self._send(lambda number: p.Tested(number, test, passed, times, problem[:300], figures))
