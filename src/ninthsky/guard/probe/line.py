"""A rank's line to the agent of its host: messages out from any thread, messages in through one reader thread.

Two messages cannot wait for the main thread, which may be blocked in a collective: Abort frees it, and Fenced ends the process.
"""

from __future__ import annotations

import os
import queue
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from ninthsky.guard.probe.messages import Abort, Fenced, Stop, ToAgent, ToRank, decode_to_rank, frame, receive

FENCED_STATUS = 3  # exit status of a rank that was replaced while it could not hear
ORPHANED_STATUS = 4  # exit status of a rank whose agent is gone

Wanted = TypeVar("Wanted")


class Interrupted(Exception):
    """Abort or Stop came instead of what was waited for."""

    def __init__(self, message: Abort | Stop) -> None:
        super().__init__(str(message))
        self.message = message


class Line:
    """Connected to the agent's Unix socket at `path`. `on_abort` runs in the reader thread.

    `generation` is set by the rank when it is assigned: an Abort of an older one is dropped.
    """

    def __init__(self, path: str, on_abort: Callable[[Abort], None]) -> None:
        self.generation = -1
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(path)
        self._on_abort = on_abort
        self._sending = threading.Lock()
        self._writing = threading.Lock()
        self._set_aside: list[ToRank] = []
        self._inbox: queue.SimpleQueue[ToRank] = queue.SimpleQueue()
        self._closed = False
        self._reader = threading.Thread(target=self._read, name="line", daemon=True)
        self._reader.start()

    def send(self, message: ToAgent) -> None:
        """Whole, from any thread. Where the agent is gone the process ends: nobody could command it any more."""
        data = frame(message)
        try:
            with self._sending:
                self._socket.sendall(data)
        except OSError:
            os._exit(ORPHANED_STATUS)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Wraps each moment in which a file of this rank becomes visible.

        Entered only when nothing from the agent is left unread: a process that was frozen and replaced hears Fenced first.
        """
        while True:
            self._writing.acquire()
            if not select.select([self._socket], [], [], 0)[0]:
                break
            self._writing.release()
            time.sleep(0.0005)  # the reader's turn
        try:
            yield
        finally:
            self._writing.release()

    def wait_for(self, kind: type[Wanted], accept: Callable[[Wanted], bool] = lambda _: True) -> Wanted:
        """The next message of that kind that `accept` takes; other messages keep their order and wait.

        Raises Interrupted when Abort or Stop comes first.
        """
        found = self._find(kind, accept)
        while found is None:
            found = self._sort(self._inbox.get(), kind, accept)
        return found

    def take(self, kind: type[Wanted], accept: Callable[[Wanted], bool] = lambda _: True) -> Wanted | None:
        """The same without waiting: None where no such message has come yet."""
        found = self._find(kind, accept)
        while found is None and not self._inbox.empty():
            found = self._sort(self._inbox.get(), kind, accept)
        return found

    def _find(self, kind: type[Wanted], accept: Callable[[Wanted], bool]) -> Wanted | None:
        for index, message in enumerate(self._set_aside):
            if isinstance(message, kind) and accept(message):
                del self._set_aside[index]
                return message
        return None

    def _sort(self, message: ToRank, kind: type[Wanted], accept: Callable[[Wanted], bool]) -> Wanted | None:
        if isinstance(message, Abort) and message.generation < self.generation:
            return None
        if isinstance(message, kind) and accept(message):
            return message
        if isinstance(message, (Abort, Stop)):
            raise Interrupted(message)
        self._set_aside.append(message)
        return None

    def begin(self, generation: int) -> None:
        """A new generation: answers that were meant for the old one are forgotten."""
        self.generation = generation
        self._set_aside.clear()

    def close(self) -> None:
        """Ends the line from this side; the process goes on."""
        self._closed = True
        self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.join()
        self._socket.close()

    def _read(self) -> None:
        while True:
            select.select([self._socket], [], [])
            with self._writing:
                try:
                    body = receive(self._socket)
                except OSError:
                    body = None
                if body is None:
                    if self._closed:
                        return
                    os._exit(ORPHANED_STATUS)
                message = decode_to_rank(body)
                if isinstance(message, Fenced):
                    os._exit(FENCED_STATUS)
            if isinstance(message, Abort) and message.generation >= self.generation:
                self._on_abort(message)
            self._inbox.put(message)
