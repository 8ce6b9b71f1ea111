"""A job's folder as the page sees it: new events, changed faults, the picture of the fleet. Nothing in it is changed."""

from __future__ import annotations

import json
import os
from collections import Counter, deque
from pathlib import Path
from typing import Any

import msgspec

from ninthsky.errors import UserError
from ninthsky.guard.faults import Fault
from ninthsky.guard.page.cost import goodput, step_seconds
from ninthsky.guard.picture import FILE, Picture, read_picture
from ninthsky.guard.spec import JobSpec, load_spec

FAULTS_KEPT = 2_000
STEPS_KEPT = 600
BEGINNING = 200  # bytes of events.jsonl by which it is known again; the first event's time is among them
READ_AT_ONCE = 4 << 20  # bytes of events in one go


def find_job(path: Path) -> Path:
    """The folder of the newest job under a path: a job's folder itself, or a run's. Raises UserError N9-RUN-001."""
    found = [path / "job.json"] if (path / "job.json").is_file() else list(path.glob("**/job.json"))
    if not found:
        raise UserError("N9-RUN-001", f"no job under {path}", str(path), "n9 guard serve FOLDER (the one with job.json)")
    return max(found, key=lambda file: file.stat().st_mtime).parent


class JobFolder:
    """`look` reads what is new. Memory is bounded: the newest FAULTS_KEPT faults and STEPS_KEPT steps."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spec: JobSpec = load_spec(folder / "job.json")
        self._forget()

    def _forget(self) -> None:
        self.picture: Picture | None = None
        self.faults: dict[str, Fault] = {}
        self.steps: deque[tuple[int, float]] = deque(maxlen=STEPS_KEPT)
        self.began: float | None = None  # Unix seconds of the first event
        self.first_step: int | None = None  # the step that the job began with
        self.ended: float | None = None
        self.end = ""  # done, or failed with the reason
        self.refused: dict[str, Counter[str]] = {}  # by who turned away: reason -> how many so far
        self.answered: dict[str, bool] = {}  # approvals that the controller has read, by fault: whether it acted on them
        self._to_tell: set[str] = set()
        self._beginning = b""  # of events.jsonl: a new start begins a new file, perhaps under the old one's inode
        self._offset = 0
        self._stamps: dict[str, tuple[int, int]] = {}

    def goodput(self, now: float) -> float | None:
        """Of the job so far, or as it was at its end; None before its first event."""
        if self.began is None:
            return None
        committed = self.picture.head.committed if self.picture is not None else -1
        kept = committed + 1 - self.first_step if self.first_step is not None else 0
        return goodput(kept, step_seconds(self.steps), (self.ended if self.ended is not None else now) - self.began)

    @property
    def newest_step(self) -> int:
        """The step that the job is in."""
        return self.picture.head.step if self.picture is not None else -1

    def look(self) -> list[Fault]:
        """Takes in what was added; returns the faults that are new, changed, or answered, oldest first."""
        self._read_events()
        picture = read_picture(self.folder / FILE)
        if picture is not None and (self.picture is None or picture.head.time != self.picture.head.time):
            self.picture = picture
            self.steps.extend(picture.head.steps)
        changed = self._read_faults()
        told = {fault.id for fault in changed}
        changed += [self.faults[id] for id in sorted(self._to_tell - told) if id in self.faults]
        self._to_tell.clear()
        return changed

    def _read_events(self) -> None:
        path = self.folder / "events.jsonl"
        try:
            with path.open("rb") as file:
                beginning = file.read(BEGINNING)
                if not beginning.startswith(self._beginning):
                    self.spec = load_spec(self.folder / "job.json")
                    self._forget()
                self._beginning = beginning
                file.seek(self._offset)
                data = file.read(READ_AT_ONCE)
        except FileNotFoundError:
            return
        whole = data.rfind(b"\n") + 1
        if not whole and len(data) == READ_AT_ONCE:
            whole = len(data)  # one line of that length is none of ours
        self._offset += whole
        for line in data[:whole].splitlines():
            try:
                event = json.loads(line)
                self._happened(event["kind"], event)
            except (ValueError, KeyError, TypeError, AttributeError):
                self.refused.setdefault("page", Counter())["unreadable event"] += 1

    def _happened(self, kind: str, event: dict[str, Any]) -> None:
        at = float(event["time"])
        self.began = at if self.began is None else self.began
        if kind == "joined" and self.first_step is None:
            self.first_step = int(event["resume_step"]) + 1
        elif kind == "refused":
            self.refused[str(event["host"])] = Counter({str(why): int(n) for why, n in event["counts"].items()})
        elif kind in {"approval.done", "approval.useless"}:
            self.answered[str(event["fault"])] = kind == "approval.done"
            self._to_tell.add(str(event["fault"]))
        elif kind in {"job.done", "job.failed"}:
            self.ended, self.end = at, "done" if kind == "job.done" else f"failed: {event['reason']}"

    def _read_faults(self) -> list[Fault]:
        changed = []
        try:
            files = sorted((file for file in os.scandir(self.folder / "faults") if _is_fault(file.name)), key=_number)
        except FileNotFoundError:
            return []
        for file in files[-FAULTS_KEPT:]:
            status = file.stat()
            stamp = (status.st_mtime_ns, status.st_ino)
            if self._stamps.get(file.name) == stamp:
                continue
            try:
                fault = msgspec.json.decode(Path(file.path).read_bytes(), type=Fault)
            except (OSError, msgspec.ValidationError, msgspec.DecodeError):
                continue  # read again next time: its stamp was not taken
            self._stamps[file.name] = stamp
            self.faults[fault.id] = fault
            changed.append(fault)
        while len(self.faults) > FAULTS_KEPT:
            self.faults.pop(next(iter(self.faults)))
        return changed


def _is_fault(name: str) -> bool:
    return name.startswith("F-") and name.endswith(".json")


def _number(file: os.DirEntry[str]) -> tuple[int, str]:
    return len(file.name), file.name
