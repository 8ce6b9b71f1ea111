"""Shards over the processes of this machine."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

from ninthsky.run.executor import Task
from ninthsky.run.executor.watched import POLL, Watched


@dataclass(frozen=True)
class Local:
    """`workers` processes, each watched. No more shards are held than there are workers."""

    item_seconds: float
    workers: int

    def map(self, task: Task, shards: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        waiting = enumerate(shards)
        idle: list[Watched] = []
        busy: dict[Watched, int] = {}
        try:
            for number, shard in itertools.islice(waiting, self.workers):
                worker = Watched(task, self.item_seconds)
                busy[worker] = number
                worker.give(shard)
            while busy:
                ready = wait([worker.pipe for worker in busy], POLL)
                for worker in list(busy):
                    if (done := worker.poll(worker.pipe in ready)) is None:
                        continue
                    finished = busy.pop(worker)
                    if (following := next(waiting, None)) is not None:
                        busy[worker] = following[0]
                        worker.give(following[1])
                    else:
                        idle.append(worker)
                    yield finished, done.result
        finally:
            for worker in (*busy, *idle):
                worker.end()
