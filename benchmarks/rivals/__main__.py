"""The command: every subject, struck in turn, and one table."""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.report import publish
from benchmarks.rivals.job import STRUCK, Outcome

SUBJECTS = ("ours", "torchrun", "nvrx", "torchft", "dlrover")
RATIOS = (1.2, 2.0)


def cases(subject: Any) -> dict[str, Callable[[Path], Outcome]]:
    """What is done to a subject, by name."""
    found: dict[str, Callable[[Path], Outcome]] = {"killed": subject.kill, "frozen": subject.stop}
    if hasattr(subject, "stop_sections"):
        found["frozen, sections"] = subject.stop_sections
    if hasattr(subject, "slow"):
        found |= {f"{ratio} x slow": lambda folder, ratio=ratio: subject.slow(folder, ratio) for ratio in RATIOS}  # type: ignore[misc]
    return found


def middle(outcomes: list[Outcome], what: str, unit: str) -> str:
    """The median of those that came, and how many did not."""
    values = [value for outcome in outcomes if (value := getattr(outcome, what)) is not None]
    if not values:
        return f"not within {outcomes[0].limit:.0f} s"
    missing = f", {len(outcomes) - len(values)} not" if len(values) < len(outcomes) else ""
    return f"{statistics.median(values):.3g}{unit} (n = {len(values)}{missing})"


def row(name: str, case: str, outcomes: list[Outcome], failed: list[str]) -> tuple[str, ...]:
    if not outcomes:
        return name, case, f"does not run here: {failed[0]}", "-", "-", "-"
    blamed = sorted({outcome.blamed for outcome in outcomes if outcome.blamed is not None})
    right = f"{sum(outcome.right for outcome in outcomes)} of {len(outcomes)} (said {blamed or 'nobody'})"
    slow = case.endswith("slow")
    return (
        name, case, middle(outcomes, "named", " s"), right, "-" if slow else middle(outcomes, "trained", " s"),
        "-" if slow else middle(outcomes, "steps_lost", ""),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rivals", description=__doc__)
    parser.add_argument("--only", default=",".join(SUBJECTS), help="subjects, separated by commas")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    if unknown := set(given.only.split(",")) - set(SUBJECTS):
        parser.error(f"no such subject: {', '.join(sorted(unknown))}; there are {', '.join(SUBJECTS)}")
    folder, load = Path(tempfile.mkdtemp(prefix="bench-rivals-")), os.getloadavg()[0]
    rows, figures = [], dict[str, Any](load_before=load, struck_rank=STRUCK)
    for word in given.only.split(","):
        subject = import_module(f"benchmarks.rivals.{word}")
        for case, run in cases(subject).items():
            outcomes: list[Outcome] = []
            failed: list[str] = []
            for number in range(given.repeats):
                begun = time.monotonic()
                try:
                    outcomes.append(run(folder / f"{word}-{case.replace(' ', '-').replace(',', '')}-{number}"))
                except RuntimeError as error:  # it never began to train
                    failed.append(str(error).strip().splitlines()[-1])
                    break
                print(f"{subject.NAME}, {case}: {outcomes[-1]} ({time.monotonic() - begun:.0f} s)", flush=True)
            rows.append(row(subject.NAME, case, outcomes, failed))
            figures[f"{word}: {case}"] = {"outcomes": [vars(outcome) for outcome in outcomes], "failed": failed}
        if not hasattr(subject, "slow"):
            rows.append((subject.NAME, "slow", subject.SLOW, "-", "-", "-"))
    shutil.rmtree(folder, ignore_errors=True)
    publish("rivals", rows, figures, ("tool", "rank 2 is", "named after", "named right", "training after", "steps lost"))


if __name__ == "__main__":
    main()
