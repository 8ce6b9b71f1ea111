"""Brings ranks' states to where they are needed: to a process before it is assigned, to one that asks, to a second host."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ninthsky.guard import protocol as p
from ninthsky.guard.agent.card import Card
from ninthsky.guard.agent.lines import Lines
from ninthsky.guard.agent.shards import ShardExchange
from ninthsky.guard.agent.spawner import Process, Spawner
from ninthsky.guard.agent.store import shard_name
from ninthsky.guard.probe import messages as m


class Bringing:
    """`tell(kind, *fields)` is an event for the controller. `held`: the newest Form's."""

    def __init__(self, exchange: ShardExchange, spawner: Spawner, lines: Lines, tell: Callable[..., None]) -> None:
        self._exchange, self._spawner, self._lines, self._tell = exchange, spawner, lines, tell
        self.held: dict[int, tuple[str, str]] = {}

    async def place(self, process: Process, card: Card, place: p.Place) -> None:
        """Brings the rank's state into the process's own folder, then assigns it."""
        assign = place.assign
        if place.source:
            # Its size comes with its first piece.
            info = p.ShardInfo(assign.rank, assign.resume_step, -1, place.xxh3)
            if not await self._give(process, info, place.source, assign.generation):
                return
        if card.generation == assign.generation and card.waiting is not None:
            self._spawner.to_foreground(process)
            for message in (assign, *card.waiting):
                self._lines.send(process, message)
            card.waiting = None

    async def wanted(self, process: Process, card: Card, wanted: m.Wanted) -> None:
        """A shard of the ranks that there were before, into the folder of a process that takes a part of it over."""
        source, xxh3 = self.held.get(wanted.rank, ("", ""))
        info = p.ShardInfo(wanted.rank, wanted.step, -1, xxh3)
        if await self._give(process, info, source, wanted.generation) and card.generation == wanted.generation:
            self._lines.send(process, m.Brought(wanted.rank, wanted.step))

    async def double(self, form: p.Form, before: list[asyncio.Task[None]]) -> None:
        """Fetches what one host alone has, after the ranks of this host have got their state: nobody waits for these."""
        if before:
            await asyncio.wait(before)
        missing, reason = [], ""
        for rank, (source, xxh3) in form.again.items():
            if why := await self._fetch(p.ShardInfo(rank, form.resume_step, -1, xxh3), source):
                missing.append(rank)
                reason = why
        self._tell(p.Doubled, form.generation, missing, reason)

    async def _give(self, process: Process, info: p.ShardInfo, source: str, generation: int) -> bool:
        """Whether the shard lies in the process's folder now. Where it does not, the controller is told why."""
        reason = await self._fetch(info, source)
        if not reason and not self._exchange.store.give(info, process.folder):
            reason = f"{shard_name(info.rank, info.step)} is not held"
        if reason:
            self._tell(p.PlaceFailed, generation, info.rank, reason)
        return not reason

    async def _fetch(self, info: p.ShardInfo, source: str) -> str:
        """Why the shard could not be brought here; nothing where it is here."""
        try:
            await self._exchange.fetch(info, source)
        except (OSError, TimeoutError) as error:
            return str(error) or f"{source} did not answer"
        return ""
