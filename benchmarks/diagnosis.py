"""Root cause from an incident's text, each part alone and together. `python -m benchmarks.diagnosis [FILE.jsonl]`.

Rules and phrases were written with the open incidents in sight: their score on them is optimistic, and stands here as that.
`incidents` is honest, in five folds by thread: words learned from the other folds' incidents alone. Name other files (JSON
lines with `excerpt` and `cause`) to measure on incidents that nobody wrote rules or phrases beside.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.report import publish
from ninthsky.guard.playbook.book import UNKNOWN, Playbook, shipped
from ninthsky.guard.playbook.learned import MEASURED, Incident, consult, read_incidents
from ninthsky.guard.playbook.match import Finding, match
from ninthsky.guard.playbook.words import Words, phrases
from ninthsky.proportion import wilson

FOLDS = 5
CONFIDENT = 0.8
DATA = Path(os.environ.get("NINTHSKY_DATA", "../shared/data")) / "guard" / "incidents_open.jsonl"
PARTS = ("rules", "phrases", "incidents", "rules and phrases", "all three")  # the fourth is what is shipped
SHIPPED = "rules and phrases"


def without_rules(book: Playbook) -> Playbook:
    """The causes without a pattern."""
    return replace(book, causes={name: replace(cause, patterns=()) for name, cause in book.causes.items()})


def answers(incidents: list[Incident], part: str) -> list[list[Finding]]:
    """Each incident's findings; what is learned from incidents is learned from the other folds."""
    if part == "rules":
        return [match(incident.text, shipped()) for incident in incidents]
    book = shipped() if part in {SHIPPED, "all three"} else without_rules(shipped())
    told = phrases() if part != "incidents" else [phrase for phrase in phrases() if phrase[1] == UNKNOWN]
    of_fold = []
    for fold in range(FOLDS):
        others = [(other.text, other.cause) for at, other in enumerate(incidents) if at % FOLDS != fold]
        of_fold.append(Words([*told, *(others if part in {"incidents", "all three"} else [])]))
    return [consult(incident.text, book, of_fold[at % FOLDS]) for at, incident in enumerate(incidents)]


def score(incidents: list[Incident], found: list[list[Finding]]) -> dict[str, Any]:
    """Right at the first, within three, confident and wrong; each with its 95 % Wilson interval."""
    pairs = list(zip(incidents, found, strict=True))
    right = sum(findings[0].cause == incident.cause for incident, findings in pairs)
    three = sum(incident.cause in {f.cause for f in findings[:3]} for incident, findings in pairs)
    sure_wrong = sum(f[0].cause not in {incident.cause, UNKNOWN} and f[0].score >= CONFIDENT for incident, f in pairs)
    count = len(pairs)
    low, high = wilson(right, count)
    return {
        "top1": right / count,
        "top1_ci_low": low,
        "top1_ci_high": high,
        "top3": three / count,
        "confident_wrong": sure_wrong / count,
        "confident_wrong_ci_high": wilson(sure_wrong, count)[1],
        "unknown": sum(f[0].cause == UNKNOWN for _, f in pairs) / count,
    }


def main() -> None:
    paths = [Path(name) for name in sys.argv[1:]] or [DATA]
    incidents = [incident for path in paths for incident in read_incidents(path)]
    figures: dict[str, Any] = {"incidents": len(incidents)}
    rows: list[list[Any]] = []
    for name in PARTS:
        told = score(incidents, answers(incidents, name))
        figures |= {f"{name.replace(' ', '_')}_{key}": value for key, value in told.items()}
        first = f"{told['top1']:.3f} [{told['top1_ci_low']:.3f}, {told['top1_ci_high']:.3f}]"
        rest = f"confident and wrong {told['confident_wrong']:.3f}, unknown {told['unknown']:.3f}"
        rows.append([name, first, f"top-3 {told['top3']:.3f}, {rest}"])
    counts = Counter(incident.cause for incident in incidents)
    both = answers(incidents, SHIPPED)
    for cause, count in sorted(counts.items()):
        right = sum(f[0].cause == cause for incident, f in zip(incidents, both, strict=True) if incident.cause == cause)
        low, high = wilson(right, count)
        measured = f"{right} of {count} [{low:.2f}, {high:.2f}]" if count >= MEASURED else f"{right} of {count}: unmeasured"
        rows.append([f"  {cause}", measured, "fewer than five cases" if count < MEASURED else ""])
    publish("diagnosis", rows, figures)


if __name__ == "__main__":
    main()
