"""Records of what the rules decided: one file in the stage's folder, which `n9 why`, the events and the report read."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from ninthsky.evidence import Evidence, encode, find, read
from ninthsky.guard.probe.line import Line
from ninthsky.guard.probe.messages import Anomaly
from ninthsky.run.folder import append_line
from ninthsky.train.control.orders import FOLDER
from ninthsky.train.inject import Fault, Struck

RECORDS = "records.jsonl"
AFTER = 64  # steps for which a raised rate explains what rules see


def recorder(folder: Path, events: Path | None = None) -> Callable[[Evidence], None]:
    """Keeps records of a run in `folder`, and tells its `events`. A step that is done again gives the same record again."""
    path = folder / FOLDER / RECORDS
    path.parent.mkdir(parents=True, exist_ok=True)

    def tell(record: Evidence) -> None:
        _append(path, encode(record) + b"\n")
        if events is not None:
            line = {"id": record.id, "step": record.where["step"], "verdict": record.verdict, "remedy": record.remedy}
            append_line(events, {"time": time.time(), "kind": "control.fired", **line})

    return tell


def records(folder: Path, marks: Sequence[Struck] = ()) -> list[Evidence]:
    """In order of their steps, each once; marked as injected where one of the run's own injections (`marks`) explains it."""
    last = {record.id: record for record in read(folder / FOLDER / RECORDS)}
    return [_marked(record, marks) for record in sorted(last.values(), key=lambda record: int(record.where["step"]))]


def explain(folder: Path, id: str) -> Evidence | None:
    """For `n9 why` while the stage is still at work."""
    return find([folder / FOLDER / RECORDS], id)


def _marked(record: Evidence, marks: Sequence[Struck]) -> Evidence:
    kind = inflicted_by(record, [mark.fault for mark in marks])
    return msgspec.structs.replace(record, subject=f"{record.subject} (injected: {kind})") if kind else record


def inflicted_by(record: Evidence, faults: Iterable[Fault]) -> str:
    """The kind of the injection that explains a record, or nothing. Bad data and bad cards explain what was seen in their step;
    a raised rate, what was seen from then on."""
    step, onset = int(record.where["step"]), int(record.where["onset"])
    for fault in faults:
        at_once = fault.kind in {"bad_data", "bad_card"} and fault.step == step
        if at_once or (fault.kind == "rate" and onset - AFTER <= fault.step <= step):
            return fault.kind
    return ""


ABOUT_LOSS = frozenset({"spike", "rise", "drift"})  # rules whose firing the guard hears of; `own` asked it before


def guard_hears(line: Line, faults: Sequence[Fault]) -> Callable[[Evidence], None]:
    """Tells the guard of records about the loss, which files them with what befell cards then. `faults`: injected ones."""

    def tell(record: Evidence) -> None:
        rule = record.decided_by.removeprefix("rule ")
        if rule not in ABOUT_LOSS:
            return
        facts = [str(fact) for fact in record.facts]
        step, onset = int(record.where["step"]), int(record.where["onset"])
        injected = bool(inflicted_by(record, faults))
        ruled_out = list(record.ruled_out)
        line.send(
            Anomaly(line.generation, step, onset, record.id, rule, record.verdict, facts, ruled_out, record.remedy, injected)
        )

    return tell


def _append(path: Path, line: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, line)
    finally:
        os.close(file)
