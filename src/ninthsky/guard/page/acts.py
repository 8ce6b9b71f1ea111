"""What people did on the page: "not a fault", approvals, logins. Appended to FOLDER/page/acts.jsonl: who, when, what.

The controller reads approvals from there (guard/orders.py); everything else is for the record and for the false-alarm rate.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Literal

import msgspec

from ninthsky.guard.faults import Fault

What = Literal["login", "refused login", "not a fault", "a fault", "approve", "selftest"]
LONGEST = 16 << 20  # bytes of acts that are read back


class Act(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line. `named` is the fault's moment of naming: ids begin again with each start of a job."""

    time: float
    who: str
    address: str
    act: What
    fault: str = ""
    named: float | None = None
    reason: str = ""
    order: str = ""  # for "selftest": the hosts whose cards, or `HOST:HOST` whose link


def path_of(job: Path) -> Path:
    """Where the acts of a job's page are kept."""
    return job / "page" / "acts.jsonl"


class Acts:
    """Kept on disk before anything follows from them."""

    def __init__(self, job: Path) -> None:
        self._path = path_of(job)
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        self.by_fault: dict[tuple[str, float | None], dict[str, Act]] = {}
        for act in read_acts(self._path):
            self._take(act)

    def record(self, who: str, address: str, what: What, fault: Fault | None = None, reason: str = "", order: str = "") -> Act:
        """Raises OSError where it cannot be kept: then nothing was done."""
        act = Act(
            time=time.time(),
            who=who,
            address=address,
            act=what,
            fault=fault.id if fault else "",
            named=fault.timeline.named if fault else None,
            reason=reason,
            order=order,
        )
        handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(handle, msgspec.json.encode(act) + b"\n")
            os.fdatasync(handle)
        finally:
            os.close(handle)
        self._take(act)
        return act

    def _take(self, act: Act) -> None:
        if not act.fault:
            return
        kind = "approve" if act.act == "approve" else "judged"
        self.by_fault.setdefault((act.fault, act.named), {})[kind] = act

    def of(self, fault: Fault, kind: Literal["judged", "approve"]) -> Act | None:
        """The newest act about a fault."""
        return self.by_fault.get((fault.id, fault.timeline.named), {}).get(kind)

    def is_false_alarm(self, fault: Fault) -> bool:
        """Whether a person said that it was none."""
        act = self.of(fault, "judged")
        return act is not None and act.act == "not a fault"


def read_acts(path: Path, offset: int = 0) -> list[Act]:
    """Whole lines from a place in the file on; one that is no act is left out."""
    return read_acts_from(path, offset)[0]


def read_acts_from(path: Path, offset: int) -> tuple[list[Act], int]:
    """The acts, and where the next ones will begin."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(LONGEST)
    except OSError:
        return [], offset
    whole = data.rfind(b"\n") + 1
    found = []
    for line in data[:whole].splitlines():
        try:
            found.append(msgspec.json.decode(line, type=Act))
        except (msgspec.ValidationError, msgspec.DecodeError):
            continue
    return found, offset + whole
