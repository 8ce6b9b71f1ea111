"""Maps shards over processes, and stops what spins: a page that overruns its time or kills its process is set aside alone.

A signal cannot interrupt a parser that never returns to Python, so the watch is kept from outside: the worker says which page
it is on, the parent measures the worker's processor time, kills it, and gives the shard to a fresh process without that page.
"""

from __future__ import annotations

import ctypes
import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_PATIENCE = (
    10.0  # a page may wait this many times its limit on the wall clock: the machine may be busy, the page is not spinning
)
_POLL = 0.05  # seconds

# Called by the task before each page with its index in the shard, and with -1 when the shard is done.
Clock = Callable[[int], None]
Task = Callable[[Any, dict[int, str], Clock], Any]


@dataclass(frozen=True)
class Failed:
    """A task that raised. The text is the traceback of the worker."""

    text: str


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    # page index, wall clock at its start, processor seconds of the process at its start
    state: Any
    shard: int | None = None
    job: Any = None  # the shard itself, should it have to be done again
    skip: dict[int, str] = field(default_factory=dict)


def map_shards(
    task: Task, shards: Iterable[Any], workers: int, page_seconds: float, advance: Callable[[int], None] = lambda count: None
) -> Iterator[tuple[int, Any]]:
    """Yields (index of shard, result) as shards finish, in any order. No more shards are held than there are workers.

    `task(shard, skip, clock)` is a function of a module; `skip` maps the index of a page to why it must be left out.
    Raises RuntimeError with the worker's traceback when the task itself fails, after ending all workers.
    """
    context = multiprocessing.get_context("spawn")
    waiting = enumerate(shards)
    pool: list[_Worker] = []

    def start() -> _Worker:
        ours, theirs = context.Pipe()
        state = context.RawArray(ctypes.c_double, [-1.0, 0.0, 0.0])
        process = context.Process(target=_serve, args=(task, theirs, state), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours, state)

    def give(worker: _Worker, shard: tuple[int, Any]) -> None:
        (worker.shard, worker.job), worker.skip = shard, {}
        worker.pipe.send((worker.job, worker.skip))

    try:
        for shard in itertools.islice(waiting, workers):
            pool.append(start())
            give(pool[-1], shard)
        while any(worker.shard is not None for worker in pool):
            busy = [worker for worker in pool if worker.shard is not None]
            ready = wait([worker.pipe for worker in busy], _POLL)
            for place, worker in enumerate(pool):
                if worker.shard is None:
                    continue
                if worker.pipe in ready:
                    try:
                        result = worker.pipe.recv()
                    except EOFError:
                        worker.process.join()
                        reason = f"its process ended with status {worker.process.exitcode}"
                        pool[place] = _again(worker, int(worker.state[0]), start, reason)
                        continue
                    if isinstance(result, Failed):
                        raise RuntimeError(f"shard {worker.shard} failed:\n{result.text}")
                    finished, worker.shard = worker.shard, None
                    advance(finished)
                    yield finished, result
                    if (following := next(waiting, None)) is not None:
                        give(worker, following)
                elif (page := _overdue(worker, page_seconds)) is not None:
                    worker.process.kill()
                    worker.process.join()
                    pool[place] = _again(worker, page, start, f"it ran for more than {page_seconds:g} s")
    finally:
        for worker in pool:
            worker.process.kill()
            worker.process.join()
            worker.pipe.close()


def _again(worker: _Worker, page: int, start: Callable[[], _Worker], reason: str) -> _Worker:
    """A fresh process that does the shard again, without the page that ended the old one."""
    if page < 0 or worker.shard is None:
        raise RuntimeError(f"a worker ended outside of any page of shard {worker.shard}: {reason}")
    worker.pipe.close()
    fresh = start()
    fresh.shard, fresh.job, fresh.skip = worker.shard, worker.job, dict(worker.skip)
    if int(worker.state[0]) == page:  # else it went on between the look and the end, and no page is to blame
        fresh.skip[page] = reason
    fresh.pipe.send((fresh.job, fresh.skip))
    return fresh


def _overdue(worker: _Worker, limit: float) -> int | None:
    """The page that is over its time."""
    page, began, used = int(worker.state[0]), worker.state[1], worker.state[2]
    elapsed = time.monotonic() - began
    if page < 0 or elapsed <= limit:
        return None
    if elapsed > _PATIENCE * limit or processor_seconds(worker.process.pid or 0) - used > limit:
        return page
    return None


def processor_seconds(pid: int) -> float:
    """Processor time of another process, all its threads. Where the system does not tell, the wall clock decides alone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    except OSError:
        return float("inf")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _serve(task: Task, pipe: Connection, state: Any) -> None:
    """The worker's loop: shards until the pipe closes."""
    import traceback

    parent = os.getppid()

    def clock(page: int) -> None:
        if os.getppid() != parent:  # the driver was killed: whoever goes on from here starts workers of its own
            os._exit(1)
        # The order matters: while the parent may read, no new page stands beside an old time.
        state[0] = -1.0
        state[1], state[2] = time.monotonic(), time.process_time()
        state[0] = float(page)

    while True:
        try:
            shard, skip = pipe.recv()
        except EOFError:
            return
        try:
            result = task(shard, skip, clock)
        except Exception:
            result = Failed(traceback.format_exc())
        state[0] = -1.0
        pipe.send(result)
