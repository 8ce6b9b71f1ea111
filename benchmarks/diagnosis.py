"""Root cause from an incident's text, each part alone and together. `python -m benchmarks.diagnosis [FILE.jsonl]`.

Without FILE: the open incidents (optimistic: rules and phrases were written with them in sight), and `incidents.jsonl`
beside this file, gathered from public threads after rules, phrases and analysed incidents were frozen. What has been looked
at once is no longer unseen: whoever mends a rule by one of these moves it to `analysed.jsonl` and gathers others.
`and other folds`: the words also learn from the other folds' incidents, five folds by thread. About a minute.
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
from ninthsky.guard.playbook.words import shipped as words
from ninthsky.guard.playbook.words import taught
from ninthsky.proportion import wilson

FOLDS = 5
CONFIDENT = 0.8
OPEN = Path(os.environ.get("NINTHSKY_DATA", "../shared/data")) / "guard" / "incidents_open.jsonl"
UNSEEN = Path(__file__).with_name("incidents.jsonl")
SHIPPED = "rules and words"
PARTS = ("rules", "words", SHIPPED, "and other folds")


def without_rules(book: Playbook) -> Playbook:
    """The causes without a pattern."""
    return replace(book, causes={name: replace(cause, patterns=()) for name, cause in book.causes.items()})


def answers(incidents: list[Incident], part: str) -> list[list[Finding]]:
    """Each incident's findings; what is learned from incidents is learned from the other folds."""
    if part == "rules":
        return [match(incident.text, shipped()) for incident in incidents]
    if part != "and other folds":
        book = without_rules(shipped()) if part == "words" else shipped()
        return [consult(incident.text, book, words()) for incident in incidents]
    of_fold = [
        taught((other.text, other.cause) for at, other in enumerate(incidents) if at % FOLDS != fold) for fold in range(FOLDS)
    ]
    return [consult(incident.text, shipped(), of_fold[at % FOLDS]) for at, incident in enumerate(incidents)]


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


def measured(incidents: list[Incident], of: str) -> tuple[list[list[Any]], dict[str, Any]]:
    """The rows and figures of one set."""
    rows: list[list[Any]] = [[of, f"{len(incidents)} incidents", ""]]
    figures: dict[str, Any] = {f"{of}_incidents": len(incidents)}
    for name in PARTS:
        told = score(incidents, answers(incidents, name))
        figures |= {f"{of}_{name.replace(' ', '_')}_{key}": value for key, value in told.items()}
        first = f"{told['top1']:.3f} [{told['top1_ci_low']:.3f}, {told['top1_ci_high']:.3f}]"
        rest = f"confident and wrong {told['confident_wrong']:.3f}, unknown {told['unknown']:.3f}"
        rows.append([name, first, f"top-3 {told['top3']:.3f}, {rest}"])
    both = answers(incidents, SHIPPED)
    for cause, count in sorted(Counter(incident.cause for incident in incidents).items()):
        right = sum(f[0].cause == cause for incident, f in zip(incidents, both, strict=True) if incident.cause == cause)
        low, high = wilson(right, count)
        told_of = f"{right} of {count} [{low:.2f}, {high:.2f}]" if count >= MEASURED else f"{right} of {count}: unmeasured"
        rows.append([f"  {cause}", told_of, "fewer than five cases" if count < MEASURED else ""])
    return rows, figures


def main() -> None:
    sets = {path.stem: path for path in (Path(name) for name in sys.argv[1:])} or {"open": OPEN, "unseen": UNSEEN}
    rows: list[list[Any]] = []
    figures: dict[str, Any] = {}
    for of, path in sets.items():
        more, told = measured(read_incidents(path), of)
        rows += more
        figures |= told
    publish("diagnosis", rows, figures)


if __name__ == "__main__":
    main()
