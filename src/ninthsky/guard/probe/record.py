"""The record that a rank keeps in shared memory: 64 bytes of header and 24 bytes for each process group, 448 in all.

The rank writes, its host's agent reads, neither waits for the other: a sequence number is odd while the header is being
written, and a reader that sees it odd or changed reads again. A rank that was killed or frozen leaves its last record behind.
Times are CLOCK_MONOTONIC of the rank's own host: comparable with the agent's, never with another host's.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
import time
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

import xxhash

GROUPS = 16  # process groups that fit
HEADER = struct.Struct("<IIiiiHHffffffdd")  # see Record, after `sequence`
GROUP = struct.Struct("<QIIQ")
_ENTERED, _COUNT, _OP = struct.Struct("<QI"), struct.Struct("<I"), struct.Struct("<Q")  # parts of GROUP, and where they lie
_ENQUEUED, _COMPLETED, _OPERATION = 8, 12, 16
_TIME = struct.Struct("<d")  # eight bytes that change by themselves
MOVED, HEARTBEAT = HEADER.size - 16, HEADER.size - 8
BEAT_SECONDS = 0.25  # between two heartbeats of a rank that waits or computes; every update beats too
SIZE = HEADER.size + GROUPS * GROUP.size
assert HEADER.size == 64


class Phase(IntEnum):
    """What the rank is doing."""

    START = 0  # importing, building
    WAIT = 1  # prepared, waiting to be assigned
    JOIN = 2  # rendezvous, rebuild, restore
    DATA = 3
    LOCAL = 4  # forward and backward
    GATE = 5  # the vote before the optimizer step
    UPDATE = 6
    VERDICT = 7  # asked the controller what to do with a bad step
    DONE = 8
    PAUSED = 9  # a person paused the run: between steps, with a small collective now and then


class GroupProgress(NamedTuple):
    """How far a rank came in one process group. `op` hashes kind, shape and dtype of the last collective it entered."""

    id: int
    enqueued: int
    completed: int
    op: int


class Record(NamedTuple):
    """A rank's state. Times of the last finished step in milliseconds; `moved` and `heartbeat` in seconds of CLOCK_MONOTONIC.

    `moved`: when the rank last got on: a field was set, a collective entered or finished.
    """

    generation: int
    rank: int  # -1 for a spare
    step: int
    attempt: int
    phase: int
    flags: int  # bit 0: a local gradient of this step was not finite
    local_wall: float
    local_cpu: float
    communication: float
    data: float
    loss: float
    grad_norm: float
    moved: float
    heartbeat: float
    groups: tuple[GroupProgress, ...]


EMPTY = Record(0, -1, -1, 0, Phase.START, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, ())

NONFINITE = 1


def group_id(name: str) -> int:
    """The hash by which all ranks know a process group."""
    return xxhash.xxh3_64_intdigest(name.encode())


class RecordWriter:
    """Held by the rank. One thread writes the header and enters collectives; heartbeat() and complete() come from any."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(file, SIZE)
        self._map = mmap.mmap(file, SIZE)
        os.close(file)
        self._sequence = 0
        self._groups: dict[int, int] = {}  # id -> slot
        self._completing = threading.Lock()
        now = time.monotonic()
        self.state = EMPTY._replace(moved=now, heartbeat=now)
        self._write()

    def update(self, **fields: float) -> None:
        """Changes header fields and beats the heart."""
        now = time.monotonic()
        self.state = self.state._replace(moved=now, heartbeat=now, **fields)  # type: ignore[arg-type]
        self._write()

    def heartbeat(self) -> None:
        """Eight bytes, written whole by the processor; needs no sequence number. Called from a thread, every BEAT_SECONDS."""
        _TIME.pack_into(self._map, HEARTBEAT, time.monotonic())

    def enqueue(self, group: int, op: int) -> int:
        """A collective of `group` was entered. Returns its sequence number."""
        offset = self._slot(group)
        (enqueued,) = _COUNT.unpack_from(self._map, offset + _ENQUEUED)
        _ENTERED.pack_into(self._map, offset, group, enqueued + 1)
        _OP.pack_into(self._map, offset + _OPERATION, op)
        _TIME.pack_into(self._map, MOVED, time.monotonic())
        return int(enqueued) + 1

    def complete(self, group: int, number: int) -> None:
        """Collective `number` of `group` has finished. From any thread: it shares no bytes with `enqueue`."""
        offset = self._slot(group) + _COMPLETED
        with self._completing:
            (completed,) = _COUNT.unpack_from(self._map, offset)
            _COUNT.pack_into(self._map, offset, max(completed, number))
        _TIME.pack_into(self._map, MOVED, time.monotonic())

    def clear_groups(self) -> None:
        """A new generation counts from zero."""
        self._groups.clear()
        self._map[HEADER.size : SIZE] = bytes(SIZE - HEADER.size)

    def close(self) -> None:
        self._map.close()

    def _slot(self, group: int) -> int:
        # A seventeenth group shares the last slot: its numbers mix, which a judge sees as an unknown group.
        slot = self._groups.setdefault(group, min(len(self._groups), GROUPS - 1))
        return HEADER.size + slot * GROUP.size

    def _write(self) -> None:
        s = self.state
        self._sequence += 2
        struct.pack_into("<I", self._map, 0, self._sequence - 1)
        body = HEADER.pack(
            self._sequence - 1,
            s.generation,
            s.rank,
            s.step,
            s.attempt,
            s.phase,
            s.flags,
            s.local_wall,
            s.local_cpu,
            s.communication,
            s.data,
            s.loss,
            s.grad_norm,
            s.moved,
            s.heartbeat,
        )
        self._map[4 : HEADER.size] = body[4:]
        struct.pack_into("<I", self._map, 0, self._sequence)


def parse(raw: bytes) -> Record | None:
    """A record from its 448 bytes, or None when it was caught half written."""
    sequence, *header = HEADER.unpack_from(raw)
    if sequence % 2:
        return None
    groups = (GroupProgress(*GROUP.unpack_from(raw, HEADER.size + slot * GROUP.size)) for slot in range(GROUPS))
    return Record._make((*header, tuple(group for group in groups if group.id)))


def read_raw(path: Path, tries: int = 8) -> bytes | None:
    """The bytes of a whole record; None where there is none, or a rank died in the middle of writing one."""
    for _ in range(tries):
        try:
            before = path.read_bytes()
            after = path.read_bytes()
        except OSError:
            return None
        if len(before) == SIZE and before[:4] == after[:4] and before[0] % 2 == 0:
            return before
    return None
