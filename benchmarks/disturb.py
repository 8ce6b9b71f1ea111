"""What is done to a process from outside so that it is slow, or looks so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def stuttering(pid: int, stopped: float, running: float) -> Iterator[None]:
    """The process is stopped for `stopped` seconds, runs for `running`, and so on; it may end meanwhile."""
    over = threading.Event()
    thread = threading.Thread(target=_stutter, args=(pid, stopped, running, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _stutter(pid: int, stopped: float, running: float, over: threading.Event) -> None:
    with suppress(ProcessLookupError):
        while not over.is_set():
            os.kill(pid, signal.SIGSTOP)
            over.wait(stopped)
            os.kill(pid, signal.SIGCONT)
            over.wait(running)


@contextmanager
def burners(beside: int | None, count: int = 2) -> Iterator[None]:
    """Processes that do nothing but run; with a process id, on one processor together with that process."""
    burning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    everywhere = os.sched_getaffinity(0)
    try:
        if beside is not None:
            for pid in [beside, *(each.pid for each in burning)]:
                _bind(pid, {min(everywhere)})
        yield
    finally:
        for each in burning:
            each.kill()
            each.wait()
        if beside is not None:
            with suppress(FileNotFoundError, ProcessLookupError):
                _bind(beside, everywhere)


def _bind(pid: int, processors: set[int]) -> None:
    for thread in os.listdir(f"/proc/{pid}/task"):
        with suppress(ProcessLookupError):  # it ended since
            os.sched_setaffinity(int(thread), processors)
