"""A running job as its benchmarks see it from outside: places, processes, ports, memory."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from ninthsky.guard.spec import JobSpec
from ninthsky.run.folder import read_lines


class Enough(Exception):
    """Raised out of the job's event loop."""


class Spares:
    """Which spares a job's events say are ready, by host."""

    def __init__(self, spec: JobSpec) -> None:
        self._spec = spec
        self._slots: dict[str, set[int]] = {}

    def hear(self, event: dict[str, Any]) -> None:
        """One event of the job, each once and in their order."""
        kind = event["kind"]
        if kind == "formed":
            held = set(event["places"].values())
            for host, slots in self._slots.items():
                slots -= {slot for slot in slots if f"{host}/{slot}" in held}
        if kind == "joined" and event["generation"] == 1:  # before it, every process had to be ready
            self._slots = {host.name: set(range(host.slots, host.slots + host.spares)) for host in self._spec.hosts}
        if kind == "spare.ready":
            self._slots.setdefault(event["host"], set()).add(event["slot"])
        if kind == "process.ended":
            self._slots.get(event["host"], set()).discard(event["slot"])

    def ready(self) -> bool:
        """Whether every host has one."""
        return all(self._slots.get(host.name) for host in self._spec.hosts)


def places_of(spec: JobSpec) -> list[tuple[str, int, int]]:
    """(host, slot, pid) of each rank now."""
    entries = [entry for entry in read_lines(Path(spec.folder) / "journal.jsonl") if entry["kind"] == "places"]
    return [(host, slot, pid) for host, slot, pid in entries[-1]["places"]]


def parent_of(pid: int) -> int:
    text = Path(f"/proc/{pid}/stat").read_bytes()
    return int(text[text.rindex(b")") + 2 :].split()[1])


def resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def listening_ports(pid: int) -> list[int]:
    """TCP ports that a process listens on."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            target = os.readlink(link)
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return sorted(int(row[1].split(":")[1], 16) for row in rows if row[3] == "0A" and row[9] in inodes)
