"""An examination as people and programs read it: a table, one tree, and evidence records for `n9 why`."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ninthsky.evidence import Evidence, Fact, encode
from ninthsky.run.folder import write_json
from ninthsky.train.vet.case import Verdict
from ninthsky.train.vet.examine import Examination

FORMAT = 1
MARKS = {"pass": "[green]pass[/]", "fail": "[bold red]FAIL[/]", "unknown": "[yellow]unknown[/]"}


def show(examination: Examination, console: Console) -> None:
    """The table, what failed with its workaround, and the speeds."""
    table = Table(
        title=f"vet of {examination.device}", caption="largest, mean: error as a share of what rounding allows; over 1 fails"
    )
    for column, right in (
        ("operator", False),
        ("verdict", False),
        ("tests", True),
        ("largest", True),
        ("mean", True),
        ("", False),
    ):
        table.add_column(column, justify="right" if right else "left")
    for verdict in examination.verdicts:
        note = (
            "see below"
            if verdict.answer == "fail"
            else verdict.problem or (f"not offered: {', '.join(verdict.not_offered)}" if verdict.not_offered else "")
        )
        shares = [f"{share:.2f}" if share else "" for share in (verdict.largest, verdict.mean)]
        table.add_row(verdict.name, MARKS[verdict.answer], str(verdict.tests), shares[0], shares[1], note)
    console.print(table)
    for verdict in examination.failed:
        console.print(f"[bold]{verdict.name}[/]: {verdict.problem}", highlight=False)
        console.print(f"  workaround: {verdict.workaround}", highlight=False)
        if verdict.setting:
            console.print(f"  setting:    {verdict.setting}", highlight=False)
    for speed in examination.speeds:
        console.print(f"{speed.name:16s} {speed.value:10.4g} {speed.unit}", highlight=False)
    answers = [verdict.answer for verdict in examination.verdicts]
    console.print(", ".join(f"{answers.count(answer)} {answer}" for answer in MARKS), highlight=False)  # type: ignore[arg-type]


def tree(examination: Examination) -> dict[str, Any]:
    """Everything, as JSON: verdicts with each test's errors, golden steps, speeds, versions."""
    out: dict[str, Any] = {
        "format": FORMAT,
        "device": examination.device,
        "torch": torch.__version__,
        "seed": examination.seed,
        "failed": [verdict.name for verdict in examination.failed],
        "verdicts": [asdict(verdict) for verdict in examination.verdicts],
        "speeds": [asdict(speed) for speed in examination.speeds],
        "golden": [asdict(step) for step in examination.golden],
    }
    plain: dict[str, Any] = _finite(out)
    return plain


def _finite(value: Any) -> Any:
    """JSON has no infinity: what is beyond every bound becomes null."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def records(examination: Examination) -> list[Evidence]:
    """One record per verdict; ids are `vet-` and the operator's name."""
    return [_record(verdict, examination) for verdict in examination.verdicts]


def identity(name: str) -> str:
    """`sum and mean` -> `vet-sum-and-mean`."""
    return "vet-" + "-".join(name.replace(",", "").split())


def _record(verdict: Verdict, examination: Examination) -> Evidence:
    facts = [
        Fact(f"{finding.case}, {finding.dtype}", finding.problem, source="vet")
        for finding in verdict.findings
        if finding.problem and finding.offered
    ]
    if not facts and verdict.problem:
        facts = [Fact("seen", verdict.problem, source="vet")]
    facts.append(Fact("tests", float(verdict.tests)))
    if verdict.answer == "pass":
        facts.append(Fact("largest error as a share of its bound", verdict.largest, 1.0))
        facts.append(Fact("mean error as a share of its bound", verdict.mean, 1.0))
    remedy = verdict.workaround + (f" ({verdict.setting})" if verdict.setting else "") if verdict.answer == "fail" else ""
    return Evidence(
        id=identity(verdict.name),
        kind="device",
        subject=f"{verdict.name} on {examination.device}",
        verdict=verdict.answer,
        facts=tuple(facts),
        remedy=remedy,
        decided_by="n9 train vet",
        where={"device": examination.device, "seed": examination.seed},
    )


def write(examination: Examination, folder: Path) -> None:
    """`vet.json` and `evidence.jsonl` in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "vet.json", tree(examination))
    (folder / "evidence.jsonl").write_bytes(b"".join(encode(record) + b"\n" for record in records(examination)))
