"""What the main thread of each rank does, sampled from /proc a few times a second, in arrays of one row per rank.

The kernel counts a thread's time on a processor and its time in line for one in nanoseconds (/proc/PID/schedstat), so these
two are exact whatever the rate of sampling; where the rest of the time goes (which wait, stopped, disk) sampling has to tell.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ninthsky.guard.passive.live.processes import Rank

KEPT = 1_024  # samples
FASTEST, SLOWEST = 0.25, 2.0  # seconds between samples
BUDGET = 0.001  # of a processor for each rank: beyond it, samples come less often

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

RUNS, STOPPED, DISK, GONE = "R", "T", "D", "X"  # places; a wait in the kernel is "S:" and where


@dataclass
class Readings:
    """Arrays [ranks, samples], oldest first. `times` in seconds of the monotonic clock.

    `ran` and `queued` are seconds since the process began; `place` are numbers into `names`.
    """

    ranks: tuple[int, ...]
    times: Floats
    ran: Floats
    queued: Floats
    place: Ints
    names: tuple[str, ...]

    @property
    def span(self) -> float:
        """Seconds from the first sample to the last."""
        return float(self.times[-1] - self.times[0]) if len(self.times) else 0.0

    def last(self, seconds: float) -> Readings:
        """The end of it: all samples younger than `seconds`, and the one before them."""
        first = max(0, int(np.searchsorted(self.times, self.times[-1] - seconds, "right")) - 1) if len(self.times) else 0
        cut = slice(first, None)
        return Readings(self.ranks, self.times[cut], self.ran[:, cut], self.queued[:, cut], self.place[:, cut], self.names)

    def share(self, *places: str) -> Floats:
        """[ranks]: of the samples, the share in one of these places."""
        wanted = [number for number, name in enumerate(self.names) if name in places]
        return np.isin(self.place, wanted).mean(axis=1) if self.place.shape[1] else np.zeros(len(self.ranks))

    def waiting(self) -> str:
        """The place of waiting where all ranks together are seen most; empty where nobody waits."""
        counts = np.bincount(self.place.ravel(), minlength=len(self.names))
        waits = [(int(counts[number]), name) for number, name in enumerate(self.names) if name.startswith("S:")]
        count, name = max(waits, default=(0, ""))
        return name if count else ""


@dataclass
class Sampler:
    """Samples ranks as often as BUDGET allows. Not safe for threads."""

    ranks: Sequence[Rank]
    clock: float = 0.0  # when the last sample was taken
    every: float = FASTEST
    _names: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.ranks)
        self._times = np.zeros(2 * KEPT)
        self._ran, self._queued = np.zeros((n, 2 * KEPT)), np.zeros((n, 2 * KEPT))
        self._place = np.zeros((n, 2 * KEPT), np.int64)
        self._count = 0

    def sample(self) -> None:
        """Takes one. A process that is gone, or became another, is GONE and keeps its last figures."""
        begin = time.process_time()
        if self._count == 2 * KEPT:
            for array in (self._times, self._ran, self._queued, self._place):
                array[..., :KEPT] = array[..., KEPT:]
            self._count = KEPT
        at = self._count
        for row, rank in enumerate(self.ranks):
            seen = _look(rank)
            if seen is None:
                before = at - 1 if at else 0
                self._ran[row, at], self._queued[row, at] = self._ran[row, before], self._queued[row, before]
                place = GONE
            else:
                self._ran[row, at], self._queued[row, at], place = seen
            self._place[row, at] = self._names.setdefault(place, len(self._names))
        self._times[at] = self.clock = time.monotonic()
        self._count += 1
        cost = time.process_time() - begin
        self.every = float(np.clip(0.8 * self.every + 0.2 * cost / (BUDGET * max(1, len(self.ranks))), FASTEST, SLOWEST))

    def readings(self) -> Readings:
        """Of all that is kept: views, valid until the next sample."""
        cut = slice(max(0, self._count - KEPT), self._count)
        numbers = tuple(rank.rank for rank in self.ranks)
        return Readings(
            numbers, self._times[cut], self._ran[:, cut], self._queued[:, cut], self._place[:, cut], tuple(self._names)
        )


def _look(rank: Rank) -> tuple[float, float, str] | None:
    """(seconds run, seconds queued, place) of the main thread."""
    folder = f"/proc/{rank.pid}/task/{rank.pid}/"
    text = _read(folder + "stat")
    schedule = _read(folder + "schedstat").split()
    if not text:
        return None
    fields = text[text.rindex(b")") + 2 :].split()
    letter = fields[0].decode()
    if int(fields[19]) != rank.started or letter in "ZX":
        return None
    if len(schedule) >= 2:
        ran, queued = int(schedule[0]) / 1e9, int(schedule[1]) / 1e9
    else:  # a kernel without it: ticks of 10 ms, and no time in line
        ran, queued = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), 0.0
    if letter == "S":
        place = "S:" + _read(folder + "wchan").decode("ascii", "replace")
        if place in {"S:", "S:0"}:  # it woke up in between, or the kernel hides it
            place = "S:0"
    else:
        place = {"t": STOPPED, "T": STOPPED, "R": RUNS, "D": DISK}.get(letter, letter)
    return ran, queued, place


def _read(path: str) -> bytes:
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return b""
    try:
        return os.read(handle, 4_096)
    except OSError:  # it ended between open and read
        return b""
    finally:
        os.close(handle)
