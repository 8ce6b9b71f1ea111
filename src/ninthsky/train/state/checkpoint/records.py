"""Records of checkpoints that were not kept or not loaded, for `n9 why`: one file beside them."""

from __future__ import annotations

from pathlib import Path

from ninthsky.evidence import Evidence, Fact, encode, read

RECORDS = "records.jsonl"


def not_kept(folder: Path, step: int, reason: str) -> Evidence:
    """A save that failed or was skipped, told and recorded. Raises OSError where not even that can be written."""
    remedy = "none needed: the one before stays, the next is tried when it is due"
    return _kept(folder, Evidence(
        id=f"CKPT-{step}", kind="stage", subject=f"checkpoint of step {step}", verdict="not kept",
        facts=(Fact("reason", reason.splitlines()[0], source="train.checkpoint"),),
        remedy=remedy, decided_by="every rank reads back what it wrote", where={"step": step},
    ))  # fmt: skip


def not_loaded(folder: Path, name: str, reason: str, loaded: int) -> Evidence:
    """A checkpoint that was found damaged when a run was taken up again; `loaded` is the step that was taken in its place."""
    step = int(name.removeprefix("step-"))
    return _kept(folder, Evidence(
        id=f"CKPT-{step}-refused", kind="stage", subject=f"checkpoint of step {step}", verdict="refused",
        facts=(Fact("reason", reason, source="seal.json"),),
        remedy=f"went on from step {loaded}", decided_by="sizes and checksums of every file", where={"step": step},
    ))  # fmt: skip


def records(folder: Path) -> list[Evidence]:
    """Of all starts of a run, each once, in order of their steps."""
    last = {record.id: record for record in read(folder / RECORDS)}
    return sorted(last.values(), key=lambda record: (int(record.where["step"]), record.id))


def _kept(folder: Path, record: Evidence) -> Evidence:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / RECORDS).open("ab") as file:
        file.write(encode(record) + b"\n")
    return record
