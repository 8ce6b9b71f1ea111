"""What an agent knows of each process of its host, packed: rows of one size, so that the controller takes those of 18,432
ranks in as one array (controller/fleet.py) and makes no object of any.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

import msgspec

from ninthsky.guard.probe.record import SIZE

ROW = struct.Struct(f"<{SIZE}s4d2i?c6x")  # record, age, cpu, unheld, still, slot, pid, whether there is a record, state


class Seen(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One process in a report: its record (448 bytes, empty if unreadable), and what /proc and the agent know of it."""

    slot: int
    pid: int
    record: bytes
    age: float  # seconds since its heartbeat, by its own host's clock; -1 without a record
    state: str  # of /proc/PID/stat: R S D T t Z X
    cpu: float  # seconds of processor time used so far
    unheld: float  # seconds that its last shard has waited for a copy on another host; 0: none waits
    still: float = 0.0  # seconds since the agent last saw its step, phase or collectives change


def pack(processes: Iterable[Seen]) -> bytes:
    """A row each. A record of another size counts as none."""
    return b"".join(
        ROW.pack(
            one.record, one.age, one.cpu, one.unheld, one.still, one.slot, one.pid, len(one.record) == SIZE, one.state.encode()
        )
        for one in processes
    )  # fmt: skip
