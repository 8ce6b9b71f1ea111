"""Which entry of the playbook a fault of the ladder belongs to; what was done, is under way, and waits for a person."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ninthsky.guard.faults import Fault
from ninthsky.guard.playbook.book import UNKNOWN, Playbook
from ninthsky.guard.playbook.match import match

SURE = 0.5  # of a match by the evidence's words

# What a judge saw fits one entry only. An ended process, a silent host, a stuck thread may have any of a dozen causes: there
# the words of the evidence decide, or nobody knows. Of a bad gradient the ladder finds out: card or data.
OF_JUDGE = {"slow": "hw_straggler", "mismatch": "hang_collective_mismatch"}

STEPS = {
    "named": "the card was named",
    "aborted": "the others were told to let go",
    "assigned": "new places were given out",
    "joined": "every rank joined the new generation",
    "trained": "every rank passed a common step",
}


@dataclass(frozen=True)
class Step:
    """One line of what is done about a fault."""

    text: str
    state: Literal["done", "waiting", "person"]
    seconds: float | None = None  # after the fault began


def cause_of(fault: Fault, book: Playbook) -> str:
    """A cause of the playbook, or `unknown`."""
    if (told := str(fault.evidence.where.get("playbook", ""))) in book.causes:
        return told
    name = OF_JUDGE.get(fault.cause)
    if fault.cause == "corrupt":
        name = "gpu_sdc" if fault.rank is not None and "the data" not in fault.evidence.verdict else UNKNOWN
    if fault.cause in {"nonfinite", "outlier"}:
        data = "the data" in fault.evidence.verdict
        name = "nan_loss" if data else "gpu_sdc" if "another card takes" in fault.evidence.remedy else UNKNOWN
    if name is not None:
        return name if name in book.causes else UNKNOWN
    # How a process ended is not why: SIGKILL alone says nothing about memory, which the exit judge has looked at by itself.
    words = "\n".join(f"{fact.name} {fact.value}" for fact in fault.evidence.facts if fact.name != "exit status")
    best = match(words, book)[0]
    return best.cause if best.score >= SURE else UNKNOWN


def steps_of(fault: Fault, book: Playbook) -> list[Step]:
    """Done ones with their time, then those that are waited for, then what a person has to do."""
    found = [
        Step(text, "done", fault.seconds(mark)) for mark, text in STEPS.items() if getattr(fault.timeline, mark) is not None
    ]
    found += [Step(text, "done") for text in fault.evidence.remedy.split("; then ") if text and not _advised(text)]
    waiting = [text for text in fault.evidence.remedy.split("; then ") if _advised(text)]
    found += [Step(text, "person") for text in waiting]
    if fault.state == "open":
        regroups = fault.timeline.assigned is not None or fault.resumed_generation != fault.generation
        missing = [mark for mark in STEPS if getattr(fault.timeline, mark) is None and (regroups or mark == "trained")]
        found += [Step(STEPS[mark], "waiting") for mark in missing]
    if fault.state == "stopped":
        found.append(Step("the ladder ended: decide, then start the job again", "person"))
    known = book.causes.get(cause_of(fault, book))
    if known is not None:
        found.append(Step(known.person, "person"))
    elif fault.host:
        found.append(Step(f"cause unknown: kernel log and exporter of {fault.host}; `n9 guard diagnose` reads both", "person"))
    return found


def _advised(text: str) -> bool:
    return text.startswith("advised")
