"""The fleet as one small file: the controller writes fleet.bin once a second, and the page reads it as a process of its own.

One line of JSON (`Head`), then one byte per card slot, hosts in the order of job.json and each host's slots in a row: 21 kB
for 2,304 servers of eight cards and a spare. A reader never sees half of it, and nobody waits for a reader.
"""

from __future__ import annotations

import contextlib
import os
from enum import IntEnum
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from ninthsky.guard.controller.state import JobState
from ninthsky.guard.spec import JobSpec

EVERY_SECONDS = 1.0
FILE = "fleet.bin"
LONGEST = 4 << 20  # bytes that a reader takes
SILENT_SECONDS = 2.0  # without a word of its host a card is drawn as silent
QUIET_SHARE = 0.8  # of hang_seconds without any progress: drawn as quiet


class Card(IntEnum):
    """What a card slot is drawn as. Later ones win."""

    EMPTY = 0
    STARTING = 1
    SPARE = 2
    FORMING = 3
    WORKING = 4
    QUIET = 5
    SILENT = 6
    ACCUSED = 7
    OUT = 8


WORDS = {
    Card.EMPTY: "empty",
    Card.STARTING: "process starting",
    Card.SPARE: "spare ready",
    Card.FORMING: "joining",
    Card.WORKING: "at work",
    Card.QUIET: "no progress",
    Card.SILENT: "host silent",
    Card.ACCUSED: "accused",
    Card.OUT: "kept out or lost",
}


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """The figures beside the cards. Times in seconds; `time` is Unix time, `steps` are (step, seconds it took), newest last."""

    time: float
    stage: str
    generation: int
    step: int
    committed: int
    steps: tuple[tuple[int, float], ...] = ()
    evictions: int = 0
    calls_waiting: int = 0  # of the webhook and of drains
    calls_lost: int = 0


class Picture(msgspec.Struct, frozen=True):
    """What the file holds."""

    head: Head
    cards: NDArray[np.uint8]


def slots_of(spec: JobSpec) -> list[int]:
    """Card slots of each host, in the order of job.json: those for ranks, then those for spares."""
    return [host.slots + host.spares for host in spec.hosts]


class Painter:
    """Draws a job's state, at most once a second."""

    def __init__(self, state: JobState) -> None:
        self._state = state
        slots = slots_of(state.spec)
        first = np.concatenate([[0], np.cumsum(slots)[:-1]]).astype(np.int64)
        self._first = {host.name: int(at) for host, at in zip(state.spec.hosts, first, strict=True)}
        self._slots = {host.name: count for host, count in zip(state.spec.hosts, slots, strict=True)}
        self._total = sum(slots)
        self._path = Path(state.spec.folder) / FILE
        self._due = 0.0
        self._step, self._step_at = -1, 0.0
        self._generation = -1
        self._ranks_of, self._ranks_at = -1, np.zeros(0, np.int64)  # where the ranks of which generation are drawn
        self._steps: list[tuple[int, float]] = []

    def tick(self, waiting: int = 0, lost: int = 0) -> None:
        """Called ten times a second."""
        now = self._state.clock()
        self._time_steps(now)
        if now >= self._due:
            self._due = now + EVERY_SECONDS
            self.write(waiting, lost)

    def write(self, waiting: int = 0, lost: int = 0) -> None:
        """A full disk or a folder that is gone costs the picture and not the job."""
        state = self._state
        head = Head(
            time=state.wall(),
            stage=state.stage,
            generation=state.generation,
            step=max(state.fleet.step(), state.committed),
            committed=state.committed,
            steps=tuple(self._steps[-32:]),
            evictions=len(state.history.evictions),
            calls_waiting=waiting,
            calls_lost=lost,
        )
        self._steps.clear()
        with contextlib.suppress(OSError):
            write_picture(self._path, head, self.cards())

    def cards(self) -> NDArray[np.uint8]:
        """One Card per slot."""
        state, roster = self._state, self._state.roster
        drawn = np.zeros(self._total, np.uint8)
        for proc in list(roster.processes.values()):
            if not proc.out:
                drawn[self._at(proc.host, proc.slot)] = Card.SPARE if proc.ready else Card.STARTING
        if state.stage in {"form", "run", "collect", "wait"} and roster.places:
            self._draw_ranks(drawn)
        for fault in state.book.faults:
            if fault.state not in {"open", "advised"}:
                continue
            for host, slot in _place(fault.card, fault.host):
                self._mark(drawn, host, slot, Card.ACCUSED)
        for card in roster.kept_out:
            name, number = card.split("/")
            self._mark(drawn, name, int(number), Card.OUT)
        for host in roster.lost:
            self._mark(drawn, host, None, Card.OUT)
        return drawn

    def _draw_ranks(self, drawn: NDArray[np.uint8]) -> None:
        state = self._state
        if state.fleet.generation != state.generation:
            drawn[self._at_ranks()] = Card.FORMING
            return
        if self._ranks_of != state.generation:
            self._ranks_of, self._ranks_at = state.generation, self._at_ranks()
        known, quiet, silence = state.fleet.glance(state.clock())
        ranks = np.where(known, np.uint8(Card.WORKING), np.uint8(Card.FORMING))
        if state.stage == "run":
            ranks[known & (quiet > QUIET_SHARE * state.watch.hang_seconds)] = Card.QUIET
            ranks[silence > SILENT_SECONDS] = Card.SILENT
        drawn[self._ranks_at] = ranks

    def _at_ranks(self) -> NDArray[np.int64]:
        return np.fromiter((self._at(proc.host, proc.slot) for proc in self._state.roster.places), np.int64)

    def _at(self, host: str, slot: int) -> int:
        return self._first[host] + min(slot, self._slots[host] - 1)

    def _mark(self, drawn: NDArray[np.uint8], host: str, slot: int | None, card: Card) -> None:
        if host not in self._first:
            return
        if slot is None:
            drawn[self._first[host] : self._first[host] + self._slots[host]] = card
        else:
            drawn[self._at(host, slot)] = card

    def _time_steps(self, now: float) -> None:
        """How long each step took, by when its first rank was seen in the next one."""
        step = self._state.fleet.step()
        if self._state.generation == self._generation and self._step >= 0 and step > self._step:
            each = (now - self._step_at) / (step - self._step)
            self._steps.append((step, round(each, 4)))
        elif step == self._step and self._state.generation == self._generation:
            return
        self._step, self._step_at, self._generation = step, now, self._state.generation


def _place(card: str, host: str) -> list[tuple[str, int | None]]:
    if card:
        name, slot = card.split("/")
        return [(name, int(slot))]
    return [(name, None) for name in host.split(", ")] if host else []


def write_picture(path: Path, head: Head, cards: NDArray[np.uint8]) -> None:
    """Whole or not at all. Raises OSError."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(msgspec.json.encode(head) + b"\n" + cards.tobytes())
    draft.replace(path)


def read_picture(path: Path) -> Picture | None:
    """What the controller drew last, or None where it drew nothing (or nothing that can be read) yet."""
    try:
        with path.open("rb") as file:
            data = file.read(LONGEST + 1)
        line, separator, cards = data.partition(b"\n")
        if not separator or len(data) > LONGEST:
            return None
        return Picture(msgspec.json.decode(line, type=Head), np.frombuffer(cards, np.uint8))
    except (OSError, msgspec.ValidationError, msgspec.DecodeError):
        return None
