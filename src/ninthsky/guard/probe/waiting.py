"""Waits that can be given up: in turns of a second, between which somebody may look around.

Gloo's reduce_scatter waits without end whatever limit its wait is given (torch 2.13): another thread waits for it.
"""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from datetime import timedelta
from queue import SimpleQueue
from typing import Protocol

TURN = timedelta(seconds=1)

Turn = Callable[[], bool | None]  # what the wait returned; None where the operation has not ended; raises what it raised
Future = concurrent.futures.Future[bool]
Asked = SimpleQueue[tuple[Callable[[], bool], Future]]


class Limited(Protocol):
    """Work whose wait keeps a limit, and raises RuntimeError when that is over."""

    def wait(self, timeout: timedelta) -> bool: ...
    def is_completed(self) -> bool: ...


def by_limit(work: Limited) -> Turn:
    """Of work whose wait keeps a limit."""

    def turn() -> bool | None:
        try:
            return work.wait(TURN)
        except RuntimeError:
            if work.is_completed():
                raise
            return None

    return turn


class Waiting:
    """One thread that waits in the caller's place, and a new one after a wait was given up."""

    def __init__(self) -> None:
        self._asked: Asked | None = None

    def turns(self, wait: Callable[[], bool]) -> Turn:
        """Of any wait, which begins now."""
        if self._asked is None:
            self._asked = SimpleQueue()
            threading.Thread(target=_serve, args=(self._asked,), name="waiting", daemon=True).start()
        future = Future()
        self._asked.put((wait, future))

        def turn() -> bool | None:
            ended, _ = concurrent.futures.wait((future,), TURN.total_seconds())
            return future.result() if ended else None

        return turn

    def give_up(self) -> None:
        """Leaves the thread where it hangs; it ends with the process."""
        self._asked = None


def _serve(asked: Asked) -> None:
    while True:
        wait, future = asked.get()
        try:
            done = wait()
        except Exception as error:  # for the caller, whatever it is
            future.set_exception(error)
        else:
            future.set_result(done)
        del wait, future  # or the last operation would keep its group
