"""A wall clock that stands still while a thread stands in line for a processor that another process has.

A rank beside a busy neighbour takes longer on the wall and is not to blame. One that is stopped, or that waits for its device,
is in no line. The kernel counts the time in line in nanoseconds (second figure of /proc/thread-self/schedstat).
"""

from __future__ import annotations

import os
import time
import weakref

SCHEDULE = "/proc/thread-self/schedstat"


class RunClock:
    """Of the thread that makes it, and to be read there. Where the kernel does not count, it is the wall clock.

    A reading takes a microsecond.
    """

    def __init__(self, source: str = SCHEDULE) -> None:
        self._file = -1
        try:
            self._file = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self._file)
            self()
        except (OSError, ValueError, IndexError):
            self._file = -1

    def __call__(self) -> float:
        """Seconds."""
        if self._file < 0:
            return time.perf_counter()
        return time.perf_counter() - int(os.pread(self._file, 80, 0).split()[1]) * 1e-9
