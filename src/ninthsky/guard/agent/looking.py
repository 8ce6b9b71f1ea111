"""What an agent sees of its processes, four times a second, for next to nothing; and when that is worth a report.

Each wake-up costs more than all that is done in it: on a busy machine caches are cold. So looks are few, and nothing hangs on
when they are: a rank writes itself when it last moved, and when its heart last beat. A look reads each record where it lies in
shared memory. The kernel is asked about a process when a report goes out, or when its heart is late. A report goes out when a
step was finished, when everything has come to rest, when something is unusual, and now and then; between them the controller
knows from `Seen.still` when a rank last moved.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ninthsky.guard.agent.spawner import stat_of
from ninthsky.guard.probe.record import BEAT_SECONDS, MOVED, SIZE
from ninthsky.guard.seen import Seen

LOOK_SECONDS = 0.25
MISSED_BEATS = 3 * BEAT_SECONDS  # a heart that has not beaten for so long is told at once
LATE_BEAT = 2 * BEAT_SECONDS  # from here on the kernel is asked
AT_REST = 0.25  # seconds without a move
SELDOM = 5  # reports while a hang grows old enough to be named, though nothing happens
_TIMES = struct.Struct("<dd")  # moved, heartbeat
_STEP = slice(4, 20)  # generation, rank, step, attempt


class Watched(Protocol):
    """A process that has a record, whoever started it."""

    slot: int
    record: Path

    @property
    def pid(self) -> int: ...


@dataclass
class _Sight:
    """One process: its record's pages, its open /proc/PID/stat, and what was seen in them last."""

    record: mmap.mmap | None
    stat: int
    raw: bytes = b""
    moved_at: float = 0.0
    age: float = -1.0
    state: str = "R"
    cpu: float = 0.0
    unusual: bool = False

    def close(self) -> None:
        if self.record is not None:
            self.record.close()
        os.close(self.stat)


class Looking:
    """`look` now and then; if it answers True, `seen` is to be sent."""

    def __init__(self, report_seconds: float, hang_seconds: float) -> None:
        self._often, self._seldom = report_seconds, max(report_seconds, min(1.0, hang_seconds / SELDOM))
        self._sights: dict[int, _Sight] = {}
        self._told: dict[int, bytes] = {}  # step of each process, as it was reported
        self._unusual: set[int] = set()
        self._moved = False  # since the last report
        self._reported_at = 0.0

    def look(self, processes: Iterable[Watched], now: float) -> bool:
        """Looks at every record. True where the controller should hear of it now."""
        unusual: set[int] = set()
        stepped, rest = False, True
        for process in processes:
            sight = self._sight(process, now)
            if sight is None:
                continue
            self._read(sight, now)
            if sight.age > LATE_BEAT:
                sight.state, sight.cpu = stat_of(sight.stat)
            if sight.age > MISSED_BEATS or sight.state in "Tt":
                unusual.add(process.pid)
            stepped |= sight.raw[_STEP] != self._told.get(process.pid, b"")
            rest &= now - sight.moved_at >= AT_REST
            self._moved |= sight.moved_at > self._reported_at
        news, self._unusual = bool(unusual - self._unusual), unusual
        waited = now - self._reported_at
        return (
            news or waited >= self._seldom or (waited >= self._often - LOOK_SECONDS / 2 and (stepped or (self._moved and rest)))
        )

    def seen(self, processes: Iterable[Watched], unheld: dict[int, float], now: float) -> list[Seen]:
        """For a report that goes out now. `unheld`: by pid."""
        self._reported_at, self._moved = now, False
        found = []
        for process in processes:
            sight = self._sight(process, now)
            if sight is None:
                found.append(Seen(process.slot, process.pid, b"", -1.0, "X", 0.0, 0.0))
                continue
            self._read(sight, now)
            sight.state, sight.cpu = stat_of(sight.stat)
            self._told[process.pid] = sight.raw[_STEP]
            still = now - sight.moved_at if sight.raw else -1.0
            waits = unheld.get(process.pid, 0.0)
            found.append(Seen(process.slot, process.pid, sight.raw, sight.age, sight.state, sight.cpu, waits, still))
        return found

    def forget(self, process: Watched) -> bytes:
        """The process has ended: its last record."""
        sight = self._sights.pop(process.pid, None)
        self._told.pop(process.pid, None)
        if sight is None:
            return b""
        raw = _whole(sight.record) if sight.record is not None else b""
        sight.close()
        return raw

    def _sight(self, process: Watched, now: float) -> _Sight | None:
        """None for a process that has ended and was not looked at before."""
        sight = self._sights.get(process.pid)
        if sight is None:
            try:
                stat = os.open(f"/proc/{process.pid}/stat", os.O_RDONLY)
            except FileNotFoundError:
                return None
            sight = self._sights[process.pid] = _Sight(None, stat, moved_at=now)
        if sight.record is None:
            sight.record = _map(process)
        return sight

    def _read(self, sight: _Sight, now: float) -> None:
        if sight.record is None:
            return
        sight.raw = _whole(sight.record) or sight.raw
        if not sight.raw:
            return
        # Read anew, also where the header was caught half written.
        sight.moved_at, beat = _TIMES.unpack_from(sight.record, MOVED)
        sight.age = now - beat


def _map(process: Watched) -> mmap.mmap | None:
    """None while the process has not made its record."""
    try:
        descriptor = os.open(process.record, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        return mmap.mmap(descriptor, SIZE, prot=mmap.PROT_READ) if os.fstat(descriptor).st_size == SIZE else None
    finally:
        os.close(descriptor)


def _whole(record: mmap.mmap, tries: int = 8) -> bytes:
    """A record's bytes; none where a rank died in the middle of writing it."""
    for _ in range(tries):
        raw = record[:]
        if raw[0] % 2 == 0 and record[:4] == raw[:4]:
            return raw
    return b""
