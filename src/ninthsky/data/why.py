"""Why a page is in the corpus, or is not: the answer of `n9 why doc-...`, read from the stage's own files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ninthsky.evidence import Evidence, Fact


def explain(stage_folder: Path, id: str) -> Evidence | None:
    """The record of one document, or None when this corpus has no such id."""
    if not id.startswith("doc-"):
        return None
    row = find_row(stage_folder, id)
    if row is None:
        return None
    return _dropped(row) if "stage" in row else _kept(row)


def find_row(stage_folder: Path, id: str) -> dict[str, Any] | None:
    """The row of a document that was dropped (with stage, rule ...) or kept (with text); None where there is no such id."""
    return _row(stage_folder / "dropped", id) or _row(stage_folder / "documents", id)


def _row(folder: Path, id: str) -> dict[str, Any] | None:
    for path in sorted(folder.glob("*.parquet")):
        rows: list[dict[str, Any]] = pq.read_table(path, filters=[("id", "=", id)]).to_pylist()
        if rows:
            return rows[0]
    return None


def _where(row: dict[str, Any]) -> dict[str, str | int | float]:
    where: dict[str, str | int | float] = {"source": row["source"], "path": row["path"]}
    return {**where, "kind": "made for this project"} if row["made"] else where


def _dropped(row: dict[str, Any]) -> Evidence:
    facts = [Fact(row["rule"], row["figure"], row["threshold"], source=row["detail"] or "")]
    facts += [Fact(name, value) for name, value in row["figures"] if name != row["rule"]]
    facts += _cut(row)
    return Evidence(
        id=row["id"],
        kind="document",
        subject=f"page {row['path']}",
        verdict=f"dropped at {row['stage']} by {row['rule']}: {row['detail']}",
        facts=tuple(facts),
        decided_by=f"rule {row['rule']}",
        where={**_where(row), "language": row["language"]},
    )


def _cut(row: dict[str, Any]) -> list[Fact]:
    """The blocks that were taken out of a document."""
    return [Fact("block taken out", f"{block['text'][:80]!r}", source=block["why"]) for block in row["cut"] or ()]


def _kept(row: dict[str, Any]) -> Evidence:
    spans = ", ".join(f"{span['first']}-{span['last'] - 1}" for span in row["spans"])
    return Evidence(
        id=row["id"],
        kind="document",
        subject=f"page {row['path']}",
        verdict=f"kept: {len(row['text']):,} characters of {row['language']}, blocks {spans}",
        facts=(*(Fact(name, value) for name, value in row["figures"]), *_cut(row)),
        decided_by="every rule passed, no longer or earlier text like it",
        where={**_where(row), "language": row["language"], "encoding": row["encoding"]},
    )
