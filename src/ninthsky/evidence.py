"""The one record behind `n9 why ID`: why a page was dropped, a card blamed, a layout chosen, a carrier put to sleep.

Every room that decides something writes records of this shape, so that one command can answer for all of them.
`unknown` is always a possible verdict: a room that cannot tell says so instead of guessing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

Kind = Literal["document", "fault", "layout", "answer", "station-hour", "stage", "control", "device"]

UNKNOWN = "unknown"


class Fact(msgspec.Struct, frozen=True, omit_defaults=True):
    """One figure that spoke for the verdict, beside the threshold it was held against."""

    name: str
    value: float | str
    threshold: float | str | None = None
    unit: str = ""
    source: str = ""

    def __str__(self) -> str:
        value = f"{self.value:.4g}" if isinstance(self.value, float) else str(self.value)
        line = f"{self.name} = {value}{' ' + self.unit if self.unit else ''}"
        if self.threshold is not None:
            limit = f"{self.threshold:.4g}" if isinstance(self.threshold, float) else str(self.threshold)
            line += f" (threshold {limit})"
        return f"{line}  [{self.source}]" if self.source else line


class Evidence(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A verdict and all that led to it.

    `confidence` is between 0 and 1, or None where the decision is a plain rule and not an estimate.
    `decided_by` names the rule, judge or person. `where` holds addresses such as stage, step, host, card, rank.
    """

    id: str
    kind: Kind
    subject: str
    verdict: str
    facts: tuple[Fact, ...] = ()
    ruled_out: tuple[str, ...] = ()
    remedy: str = ""
    confidence: float | None = None
    decided_by: str = ""
    where: dict[str, str | int | float] = {}

    def render(self) -> str:
        """The record as a person reads it, most important line first."""
        lines = [f"{self.id}: {self.subject}: {self.verdict}"]
        if self.where:
            lines.append("  where      " + ", ".join(f"{key} {value}" for key, value in self.where.items()))
        lines += [f"  evidence   {fact}" for fact in self.facts]
        lines += [f"  ruled out  {line}" for line in self.ruled_out]
        if self.remedy:
            lines.append(f"  remedy     {self.remedy}")
        if self.confidence is not None:
            lines.append(f"  confidence {self.confidence:.2f}")
        if self.decided_by:
            lines.append(f"  decided by {self.decided_by}")
        return "\n".join(lines)


def encode(record: Evidence) -> bytes:
    """One JSON line, without the newline."""
    return msgspec.json.encode(record)


def decode(line: bytes | str) -> Evidence:
    """Raises msgspec.ValidationError when the line is not a record of this shape."""
    return msgspec.json.decode(line, type=Evidence)


def read(path: Path) -> Iterator[Evidence]:
    """Records of one append-only JSONL file; a last line cut short by a crash is left out."""
    if not path.exists():
        return
    with path.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                yield decode(line)


def find(paths: Iterable[Path], wanted: str) -> Evidence | None:
    """The last record with this id: a later line replaces an earlier one."""
    found = None
    for path in paths:
        for record in read(path):
            if record.id == wanted:
                found = record
    return found
