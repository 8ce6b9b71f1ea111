"""Work that must not hold up the controller: a bounded queue and one thread. What does not fit is counted, and told."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

WAITING = 256


class Calls:
    """`put` never blocks. `do` is called by the thread, one after another, and says whether it succeeded."""

    def __init__(self, name: str, *, waiting: int = WAITING) -> None:
        self._queue: queue.Queue[Callable[[threading.Event], bool]] = queue.Queue(waiting)
        self._ending = threading.Event()
        self._busy = threading.Event()
        self.lost = 0
        self.done = 0
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many were not begun yet."""
        return self._queue.qsize()

    def put(self, call: Callable[[threading.Event], bool]) -> bool:
        """False where the queue is full: the call is lost, and counted. The event is set when there is no more time."""
        try:
            self._queue.put_nowait(call)
            return True
        except queue.Full:
            self.lost += 1
            return False

    def close(self, seconds: float) -> None:
        """Gives what waits so many seconds, then ends; what was not done by then is counted as lost."""
        deadline = time.monotonic() + seconds
        while (self.waiting or self._busy.is_set()) and time.monotonic() < deadline:
            time.sleep(0.02)
        self._ending.set()
        self._thread.join(0.5)
        self.lost += self.waiting

    def _work(self) -> None:
        while not self._ending.is_set():
            try:
                call = self._queue.get(timeout=0.1)
            except queue.Empty:
                continue
            self._busy.set()
            if call(self._ending):
                self.done += 1
            else:
                self.lost += 1
            self._busy.clear()
