"""The controller's append-only journal: what must not be forgotten when it is killed and started again."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from ninthsky.guard.controller.ladder import History

# Written to disk before anything is done about them: generations are fencing tokens, and a lost host must stay lost.
DURABLE = frozenset({"generation", "places", "lost", "kept_out", "fault", "done"})


class Journal:
    """JSON lines. Opening cuts off a last line that a crash left unfinished."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.entries = list(self._read())
        self._file = path.open("ab", buffering=0)

    def write(self, kind: str, **fields: Any) -> None:
        self._file.write(msgspec.json.encode({"kind": kind, "time": time.time(), **fields}) + b"\n")
        if kind in DURABLE:
            os.fdatasync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def _read(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        whole = 0
        with self.path.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                yield msgspec.json.decode(line)
        os.truncate(self.path, whole)


@dataclass
class Memory:
    """What a journal's entries amount to. `joined`: the last generation that all ranks had joined."""

    generation: int = 0
    reason: str = ""
    places: list[tuple[str, int, int]] = field(default_factory=list)
    resume_step: int = -1
    joined: int = 0
    committed: int = -1
    results: dict[int, dict[str, Any]] = field(default_factory=dict)
    history: History = field(default_factory=History)
    kept_out: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    ended: bool | None = None  # True: well, False: failed


def recall(entries: Iterable[dict[str, Any]]) -> Memory:
    """Replays a journal."""
    memory = Memory()
    for entry in entries:
        kind = entry["kind"]
        if kind == "generation":
            memory.generation, memory.reason = entry["generation"], entry["reason"]
        elif kind == "places":
            memory.places = [(host, slot, pid) for host, slot, pid in entry["places"]]
            memory.resume_step = entry["resume_step"]
        elif kind == "joined":
            memory.joined = entry["generation"]
        elif kind == "commit":
            memory.committed = max(memory.committed, entry["step"])
        elif kind == "finished":
            memory.results[entry["rank"]] = entry["result"]
        elif kind == "eviction":
            memory.history.evictions.append(entry["at"])
            memory.history.card_failures[entry["card"]] += 1
        elif kind == "kept_out":
            memory.kept_out.add(entry["card"])
        elif kind == "lost":
            memory.lost.add(entry["host"])
        elif kind == "done":
            memory.ended, memory.reason = entry["ok"], entry.get("reason", "")
    return memory
