"""A rank's line to the agent of its host: messages out from any thread, messages in through one reader thread.

Two messages cannot wait for the main thread, which may be blocked in a collective: Abort frees it, and Fenced ends the process.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from ninthsky.guard.probe.messages import Abort, Fenced, Stop, ToAgent, ToRank, decode_to_rank, frame, receive

FENCED_STATUS = 3  # exit status of a rank that was replaced while it could not hear
ORPHANED_STATUS = 4  # exit status of a rank whose agent is gone

T = TypeVar("T")


class Interrupted(Exception):  # noqa: N818 - it is no error: the generation ended while something was waited for
    """Abort or Stop came instead of what was waited for."""

    def __init__(self, message: Abort | Stop) -> None:
        super().__init__(str(message))
        self.message = message


class Line:
    """Connected to the agent's Unix socket at `path`.

    `on_abort` runs in the reader thread. A rank writes only inside `with line.writing():`, which a fenced process cannot enter.
    """

    def __init__(self, path: str, on_abort: Callable[[Abort], None]) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(path)
        self._on_abort = on_abort
        self._sending = threading.Lock()
        self._writing = threading.Lock()
        self._waiting: list[ToRank] = []
        self._inbox: queue.SimpleQueue[ToRank] = queue.SimpleQueue()
        self.round_trips: dict[str, float] = {}
        threading.Thread(target=self._read, name="line", daemon=True).start()

    def send(self, message: ToAgent) -> None:
        """Whole or not at all; from any thread. The process ends where the agent is gone: nobody could command it any more."""
        data = frame(message)
        try:
            with self._sending:
                self._socket.sendall(data)
        except OSError:
            os._exit(ORPHANED_STATUS)

    def writing(self) -> threading.Lock:
        """Held while a file becomes visible. Fenced takes it too, so that the process never ends half way through a rename."""
        return self._writing

    def wait_for(self, kind: type[T], accept: Callable[[T], bool] = lambda _: True, timeout: float | None = None) -> T:
        """The next message of that kind that `accept` takes; others keep their order and wait.

        Raises Interrupted when Abort or Stop comes first (unless it is what is asked for), TimeoutError after `timeout` seconds.
        """
        end = None if timeout is None else time.monotonic() + timeout
        for index, message in enumerate(self._waiting):
            if isinstance(message, kind) and accept(message):
                return self._waiting.pop(index)  # type: ignore[return-value]
        while True:
            message = self._next(end)
            if isinstance(message, kind) and accept(message):
                return message
            if isinstance(message, (Abort, Stop)):
                raise Interrupted(message)
            self._waiting.append(message)

    def forget(self) -> None:
        """A new generation: what was said about the old one is answered by nobody."""
        self._waiting.clear()

    def _next(self, end: float | None) -> ToRank:
        try:
            return self._inbox.get(timeout=None if end is None else max(0.0, end - time.monotonic()))
        except queue.Empty:
            raise TimeoutError("the agent did not answer in time") from None

    def _read(self) -> None:
        while True:
            try:
                body = receive(self._socket)
            except OSError:
                body = None
            if body is None:
                os._exit(ORPHANED_STATUS)
            message = decode_to_rank(body)
            if isinstance(message, Fenced):
                with self._writing:
                    os._exit(FENCED_STATUS)
            if isinstance(message, Abort):
                self._on_abort(message)
            self._inbox.put(message)
