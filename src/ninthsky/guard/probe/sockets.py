"""Frees ranks that wait for a peer which will never answer: shuts down this process's own sockets of the current generation.

A frozen peer, or a host lost without a TCP reset, leaves everybody blocked: torch's `destroy_process_group` and
`_abort_process_group` do nothing then (gloo, torch 2.13). Shutting down the connected sockets makes the blocked collective
raise at once, and lets the error travel to ranks that had only waited on the survivors. Listening sockets stay as they are.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

_FOLDER = Path("/proc/self/fd")


def _open_sockets() -> Iterator[tuple[int, str]]:
    """(file descriptor, name such as "socket:[12345]") of each socket. The name is never used twice, the number is."""
    for entry in _FOLDER.iterdir():
        try:
            name = os.readlink(entry)
        except OSError:
            continue  # closed since the listing, among them the listing's own descriptor
        if name.startswith("socket:"):
            yield int(entry.name), name


class GenerationSockets:
    """The sockets that appeared since `mark`: a generation's groups and its store."""

    def __init__(self) -> None:
        self._before: set[str] = set()
        self.mark()

    def mark(self) -> None:
        """A new generation begins: sockets open now do not belong to it."""
        self._before = {name for _, name in _open_sockets()}

    def abort(self) -> int:
        """Shuts down every connected socket of the generation, from any thread. Returns how many."""
        count = 0
        for descriptor, name in _open_sockets():
            if name in self._before:
                continue
            try:
                # A duplicate, so that closing it here leaves the owner's descriptor open and its number taken.
                with socket.socket(fileno=os.dup(descriptor)) as connection:
                    if connection.family == socket.AF_UNIX or connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                        continue
                    connection.shutdown(socket.SHUT_RDWR)
                    count += 1
            except OSError:
                continue  # closed or already cut by its other end: nobody can be blocked on it
        return count
