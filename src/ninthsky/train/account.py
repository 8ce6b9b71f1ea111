"""What each fault of a job was, cost and came to: from the guard's files, the marks of the injections, and the history."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ninthsky.run.folder import read_json, read_lines, write_json
from ninthsky.train.inject import Struck, struck

CAUSES = {
    "kill": ("exit",),
    "freeze": ("frozen", "hang"),
    "nan": ("nonfinite",),
    "slow": ("slow",),
    "bad_card": ("outlier", "corrupt"),
    "bad_data": ("outlier",),
    "flip_gradient": ("corrupt", "nonfinite"),
    "flip_weight": ("corrupt",),
    "wrong_matmul": ("corrupt",),
}


@dataclass(frozen=True)
class Account:
    """One fault. Seconds count from the moment of the injection where it was injected, else from its first sign."""

    record: dict[str, Any]  # as in faults/F-0001.json
    injection: Struck | None
    named_seconds: float | None
    again_seconds: float | None  # until the first step after it was done, or, of a slow rank, how long its replacement took

    @property
    def id(self) -> str:
        return str(self.record["id"])

    @property
    def kind(self) -> str:
        """kill, freeze, nan or slow where it was injected; the guard's own word for it elsewhere."""
        return self.injection.fault.kind if self.injection else str(self.record["cause"])


def read_history(path: Path) -> list[dict[str, Any]]:
    """One line per step: of a step that was done again, the last."""
    last = {line["step"]: line for line in read_lines(path)}
    return [last[step] for step in sorted(last)]


def accounts(folder: Path) -> list[Account]:
    """The faults of all starts of the job in `folder`, numbered through. Writes them to faults/."""
    lines = list(read_lines(folder / "history.jsonl"))
    marks = struck(folder)
    records: list[dict[str, Any]] = []
    for start in sorted((folder / "guard").glob("start-*"), key=lambda path: int(path.name.rpartition("-")[2])):
        records += filter(None, (read_json(path) for path in sorted((start / "faults").glob("F-*.json"))))
    found = []
    for number, record in enumerate(records, 1):
        record["id"] = record["evidence"]["id"] = f"F-{number:04d}"
        write_json(folder / "faults" / f"{record['id']}.json", record)
        mark = _mark_of(record, marks)
        if mark is not None:
            marks.remove(mark)
        found.append(_account(record, mark, lines))
    return found


def _mark_of(record: dict[str, Any], marks: list[Struck]) -> Struck | None:
    if not record["injected"]:
        return None
    fitting = [mark for mark in marks if record["cause"] in CAUSES[mark.fault.kind] and mark.fault.rank == record["rank"]]
    return min(fitting, key=lambda mark: abs(mark.fault.step - record["step"]), default=None)


def _account(record: dict[str, Any], mark: Struck | None, lines: list[dict[str, Any]]) -> Account:
    timeline = record["timeline"]
    began = mark.time if mark else timeline.get("began")
    named = timeline.get("named")
    again: float | None = None
    if record["cause"] == "slow":
        if "trained" in timeline and "aborted" in timeline:
            again = timeline["trained"] - timeline["aborted"]
    elif mark is not None:
        after = [line["time"] for line in lines if line["step"] >= mark.fault.step and line["time"] > mark.time]
        again = min(after) - mark.time if after else None
    elif began is not None and "trained" in timeline:
        again = timeline["trained"] - began
    return Account(record, mark, None if began is None or named is None else named - began, again)
