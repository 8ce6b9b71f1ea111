"""A running job as its benchmarks see it from outside: places, processes, ports, memory."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ninthsky.guard.spec import JobSpec
from ninthsky.run.folder import read_lines


class Enough(Exception):
    """Raised out of the job's event loop."""


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
