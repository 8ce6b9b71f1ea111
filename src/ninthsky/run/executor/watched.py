"""A process that does shards and is watched: an item that overruns its time, or ends its process, is set aside alone.

A signal cannot interrupt a parser that never returns to Python, so the watch is kept from outside: the worker says which item
it is on, the parent measures the worker's processor time, kills it, and gives the shard to a fresh process without that item.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import time
from collections import Counter
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from ninthsky.run.executor import Task

POLL = 0.05  # seconds
# An item may wait this many times its limit on the wall clock: the machine may be busy, the item is not spinning.
_PATIENCE = 10.0
# So often a process may end on the same item before the item is blamed: the first ends may be the machine's doing (a kill, too
# little memory), and then the item is as good as any.
_ENDS = 3


@dataclass(frozen=True)
class Done:
    """What a task returned."""

    result: Any


@dataclass(frozen=True)
class _Failed:
    """A task that raised. The text is the traceback of the worker."""

    text: str


class Watched:
    """One process for one task. `give` it a shard, then `poll` until it is done; or `do` both."""

    def __init__(self, task: Task, item_seconds: float) -> None:
        self.task, self.item_seconds = task, item_seconds
        self._context = multiprocessing.get_context("spawn")
        self._shard: Any = None
        self._skip: dict[int, str] = {}
        self._ends: Counter[int] = Counter()
        self._start()

    def _start(self) -> None:
        self.pipe, theirs = self._context.Pipe()
        # index of the item, wall clock at its start, processor seconds of the process at its start
        self._state = self._context.RawArray(ctypes.c_double, [-1.0, 0.0, 0.0])
        self.process = self._context.Process(target=_serve, args=(self.task, theirs, self._state), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, shard: Any) -> None:
        """The next shard, once the one before is done."""
        self._shard, self._skip, self._ends = shard, {}, Counter()
        self._send()

    def _send(self) -> None:
        try:
            self.pipe.send((self._shard, self._skip))
        except OSError:  # it was killed while it had nothing to do
            self._restart()

    def _restart(self) -> None:
        self.end()
        self._start()
        self._send()

    def do(self, shard: Any) -> Any:
        """The shard's result. Raises RuntimeError as `poll` does."""
        self.give(shard)
        while (done := self.poll(bool(wait([self.pipe], POLL)))) is None:
            pass
        return done.result

    def poll(self, ready: bool) -> Done | None:
        """The result, once it is there. `ready`: whether the pipe can be read.

        Raises RuntimeError with the task's traceback, or where the process ends again and again outside of any item.
        """
        if ready:
            try:
                answer = self.pipe.recv()
            except (EOFError, OSError):
                self.process.join()
                item = int(self._state[0])
                self._ends[item] += 1
                if self._ends[item] >= _ENDS:
                    status = f"its process ended with status {self.process.exitcode}"
                    if item < 0:
                        raise RuntimeError(f"a worker ended {_ENDS} times outside of any item: {status}") from None
                    self._skip[item] = status
                self._restart()
                return None
            if isinstance(answer, _Failed):
                raise RuntimeError(f"a shard failed:\n{answer.text}")
            self._shard = None
            return Done(answer)
        if (item := self._overdue()) >= 0:
            self.process.kill()
            self.process.join()
            if int(self._state[0]) == item:  # else it went on between the look and the end, and no item is to blame
                self._skip[item] = f"it ran for more than {self.item_seconds:g} s"
            self._restart()
        return None

    def end(self) -> None:
        """Kills the process."""
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def _overdue(self) -> int:
        """The item that is over its time, or -1."""
        item, began, used = int(self._state[0]), self._state[1], self._state[2]
        elapsed = time.monotonic() - began
        if item < 0 or elapsed <= self.item_seconds:
            return -1
        over = elapsed > _PATIENCE * self.item_seconds
        return item if over or processor_seconds(self.process.pid or 0) - used > self.item_seconds else -1


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

    def clock(item: int) -> None:
        if os.getppid() != parent:  # the driver was killed: whoever goes on from here starts workers of its own
            os._exit(1)
        # The order matters: while the parent may read, no new item stands beside an old time.
        state[0] = -1.0
        state[1], state[2] = time.monotonic(), time.process_time()
        state[0] = float(item)

    while True:
        try:
            shard, skip = pipe.recv()
        except EOFError:
            return
        try:
            answer = task(shard, skip, clock)
        except Exception:
            answer = _Failed(traceback.format_exc())
        state[0] = -1.0
        pipe.send(answer)
