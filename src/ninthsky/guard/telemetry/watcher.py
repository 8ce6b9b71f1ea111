"""The agent's eye on its host: scrapes the exporter, follows the kernel's log, and sends the few notes that matter.

All of it is beside the job: an exporter that does not answer or a log that may not be read is told once, and harms nothing.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections import deque
from collections.abc import Callable

import msgspec

from ninthsky.guard.telemetry import exporter
from ninthsky.guard.telemetry.kernel import KernelLog, Reader, open_log
from ninthsky.guard.telemetry.note import HOST_WIDE, Note
from ninthsky.guard.telemetry.readings import Readings
from ninthsky.guard.telemetry.sources import check_sources

LOOK_SECONDS = 0.5  # between two looks at the kernel's log
KEPT = 32  # newest notes, for a controller that missed some
KEPT_SECONDS = 120.0
SPAN_SECONDS = 10.0
MOST = 20  # notes sent within SPAN_SECONDS; what is hard goes first, the rest is counted
MESSAGE = 32  # notes in a message at most
_ORDER = {"hard": 0, "warning": 1, "said": 2}


class HostWatch:
    """`send(notes, problems, dropped)` is called in the event loop. `slot_of(pid)`: card of a process of the agent's, else -1.

    `sources` and `kernel_log` as in `[guard]`, with `{host}` replaced. Raises UserError N9-CFG-012 for a source that is none.
    """

    def __init__(
        self,
        host: str,
        slots: int,
        sources: str,
        kernel_log: str,
        seconds: float,
        send: Callable[[list[Note], list[str], int], None],
        slot_of: Callable[[int], int] = lambda pid: HOST_WIDE,
    ) -> None:
        self._sources = check_sources(sources.replace("{host}", host))
        self._seconds, self._send = seconds, send
        self._readings = Readings(slots)
        self._reader = Reader(self._readings.buses, slot_of)
        self._log, problem = open_log(kernel_log.replace("{host}", host))
        self._problems = [problem] if problem else []
        self._failed: set[str] = set()
        self._kept: deque[tuple[float, Note]] = deque(maxlen=KEPT)
        self._sent: deque[float] = deque(maxlen=MOST)
        self._dropped = 0

    @property
    def idle(self) -> bool:
        """Nothing to watch."""
        return not self._sources and self._log is None and not self._problems

    async def run(self) -> None:
        """For ever. What nobody thought of ends the watch of this host, which is told, and never the job."""
        try:
            await self._watch()
        except Exception as error:
            self._send([], [f"this host's telemetry is not watched any more: {type(error).__name__}: {error}"], 0)
            self.close()
            traceback.print_exc()

    async def _watch(self) -> None:
        if self._problems:
            self._send([], self._problems, 0)
            self._problems = []
        scrape_at = time.monotonic()
        while not self.idle:
            self.look()
            if self._sources and time.monotonic() >= scrape_at:
                scrape_at = time.monotonic() + self._seconds
                for source in self._sources:
                    await self._scrape(source)
            await asyncio.sleep(min(LOOK_SECONDS, self._seconds))

    def look(self) -> None:
        """Reads what the kernel's log has got since. Called before an exit is told, too, so that its reason is there first."""
        if self._log is None:
            return
        now = time.monotonic()
        try:
            lines = self._log.read()
        except OSError as error:
            self._give_up(self._log, error)
            return
        notes = [note for line in lines if (note := self._reader.note(line, now)) is not None]
        self._tell(notes, now)

    def newest(self) -> list[Note]:
        """What was sent in the last KEPT_SECONDS, for a controller that may have missed it."""
        now = time.monotonic()
        return [msgspec.structs.replace(note, age=now - at) for at, note in self._kept if now - at < KEPT_SECONDS]

    def close(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None

    async def _scrape(self, source: str) -> None:
        try:
            text = await exporter.get(source)
        except (OSError, ValueError) as error:
            if source not in self._failed:  # told once, until it answers again
                self._failed.add(source)
                self._send([], [f"{source}: {error or type(error).__name__}"], 0)
            return
        self._failed.discard(source)
        now = time.monotonic()
        self._tell(self._readings.take(text.splitlines(), now, source), now)

    def _tell(self, notes: list[Note], now: float) -> None:
        if not notes:
            return
        while self._sent and now - self._sent[0] >= SPAN_SECONDS:
            self._sent.popleft()
        notes.sort(key=lambda note: _ORDER[note.weight])
        chosen = notes[: min(MESSAGE, MOST - len(self._sent))]
        self._dropped += len(notes) - len(chosen)
        if not chosen:
            return
        self._sent.extend([now] * len(chosen))
        self._kept.extend((now - note.age, note) for note in chosen)
        dropped, self._dropped = self._dropped, 0
        self._send(chosen, [], dropped)

    def _give_up(self, log: KernelLog, error: OSError) -> None:
        self._send([], [f"{log.path}: {error.strerror or error}"], 0)
        self.close()
