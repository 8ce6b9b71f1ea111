"""Shards on their way from a rank's folder into the store: checked in the order in which they were announced.

The checksum of a large shard takes longer than an agent may be silent, on a crowded machine by seconds: a thread reckons it.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable

from ninthsky.guard.agent.spawner import Process
from ninthsky.guard.agent.store import AT_ONCE, ShardStore, digest_of, shard_name
from ninthsky.guard.probe.messages import Shard
from ninthsky.guard.protocol import ShardInfo

MOST_WAITING = 256  # a rank waits for its last copy before it announces the next: two for each, and some more


class Adopting:
    """`counts(process, shard)`: whether the shard is still of the generation and the rank that count; asked before and after.

    `adopted(info)` follows where it was taken in; why not is counted in `refused`.
    """

    def __init__(
        self,
        store: ShardStore,
        counts: Callable[[Process, Shard], bool],
        adopted: Callable[[ShardInfo], None],
        refused: Counter[str],
    ) -> None:
        self._store, self._counts, self._adopted, self._refused = store, counts, adopted, refused
        self._waiting: deque[tuple[Process, Shard]] = deque()
        self._under_way = False
        self._there = asyncio.Event()

    def put(self, process: Process, shard: Shard) -> None:
        """A rank has announced a shard. A small one is taken in before this returns, unless others are before it."""
        if not self._counts(process, shard):
            self._refused["stale shard"] += 1
        elif shard.size <= AT_ONCE and not self._waiting and not self._under_way:
            self._refuse(self._store.adopt(process.folder / shard_name(shard.rank, shard.step), _info(shard)), shard)
        elif len(self._waiting) >= MOST_WAITING:
            self._refused["shard: too many wait"] += 1
        else:
            self._waiting.append((process, shard))
            self._there.set()

    async def serve(self) -> None:
        """Until cancelled."""
        while True:
            await self._there.wait()
            self._there.clear()
            while self._waiting:
                process, shard = self._waiting.popleft()
                self._under_way = True
                try:
                    await self._adopt(process, shard)
                finally:
                    self._under_way = False

    async def _adopt(self, process: Process, shard: Shard) -> None:
        path = process.folder / shard_name(shard.rank, shard.step)
        if not self._counts(process, shard):
            self._refused["stale shard"] += 1
            return
        try:
            view = self._store.view_file(path, shard.rank)
            xxh3 = await digest_of(view)
            if not self._counts(process, shard):
                self._refused["stale shard"] += 1
                return
            reason = self._store.take(path, view, xxh3, _info(shard))
        except OSError as error:
            reason = f"cannot be read: {error}"
        self._refuse(reason, shard)

    def _refuse(self, reason: str, shard: Shard) -> None:
        if reason:
            self._refused[f"shard with a wrong checksum: {reason}"] += 1
        else:
            self._adopted(_info(shard))


def _info(shard: Shard) -> ShardInfo:
    return ShardInfo(shard.rank, shard.step, shard.size, shard.xxh3)
