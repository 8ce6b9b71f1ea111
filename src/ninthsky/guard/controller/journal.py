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
from ninthsky.guard.controller.worlds import Worlds

# Written to disk before anything is done about them: generations are fencing tokens, and a lost host must stay lost.
DURABLE = frozenset({"generation", "places", "lost", "kept_out", "fault", "done", "term"})
JOURNAL = "journal.jsonl"


class Journal:
    """JSON lines. Opening it for writing cuts off a last line that a crash left unfinished.

    `term`: under which it is written, where a standby might have taken over. Where two hosts share the file, one that was
    frozen may still write a line when another leads: it bears an older term, and recall() passes it over.
    """

    def __init__(self, path: Path, *, term: int = 0, writing: bool = True) -> None:
        self.path = path
        self._term = {"term": term} if term else {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self.entries = list(self._read(cutting=writing))
        self._file = path.open("ab", buffering=0) if writing else None

    def write(self, kind: str, **fields: Any) -> None:
        assert self._file is not None, "opened for reading"
        self._file.write(msgspec.json.encode({"kind": kind, "time": time.time(), **self._term, **fields}) + b"\n")
        if kind in DURABLE:
            os.fdatasync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _read(self, cutting: bool) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        whole = 0
        with self.path.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                yield msgspec.json.decode(line)
        if cutting:
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
    suspected: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    worlds: Worlds = field(default_factory=Worlds)
    verified: int | None = None  # what the generation under way was told to trust
    saved: int = -1  # finished steps of the newest checkpoint that was allowed
    ended: bool | None = None  # True: well, False: failed


def recall(entries: Iterable[dict[str, Any]]) -> Memory:
    """Replays a journal."""
    memory = Memory()
    term = 0
    for entry in entries:
        kind = entry["kind"]
        if entry.get("term", 0) < term:
            continue  # by one that was replaced and did not know it yet
        term = entry.get("term", 0)
        if kind == "generation":
            memory.generation, memory.reason = entry["generation"], entry["reason"]
            memory.verified = entry.get("verified")
        elif kind == "places":
            if len(memory.places) != len(entry["places"]):
                memory.results.clear()
            memory.places = [(host, slot, pid) for host, slot, pid in entry["places"]]
            memory.resume_step = entry["resume_step"]
            memory.worlds.begin(memory.resume_step, len(memory.places))
        elif kind == "joined":
            memory.joined, memory.verified = entry["generation"], None
        elif kind == "commit":
            memory.committed = max(memory.committed, entry["step"])
        elif kind == "rollback":
            memory.committed = entry["step"]
        elif kind == "saved":
            memory.saved = entry["step"]
        elif kind == "finished":
            memory.results[entry["rank"]] = entry["result"]
        elif kind == "eviction":
            memory.history.evictions.append(entry["at"])
            memory.history.card_failures[entry["card"]] += 1
        elif kind == "restart":
            memory.history.restarts.append(entry["at"])
        elif kind == "kept_out":
            memory.kept_out.add(entry["card"])
        elif kind == "suspected":
            memory.suspected.add(entry["card"])
        elif kind == "cleared":
            memory.suspected.discard(entry["card"])
        elif kind == "lost":
            memory.lost.add(entry["host"])
        elif kind == "done":
            memory.ended, memory.reason = entry["ok"], entry.get("reason", "")
    return memory
