"""Finds the export folder that a person means."""

from __future__ import annotations

from pathlib import Path

from ninthsky.errors import UserError
from ninthsky.run.folder import find_run

# Stages that leave an export, the furthest first.
EXPORTS = ("align.dpo", "train.pretrain")


def find_export(target: str | None, store: Path) -> tuple[Path, str]:
    """(export folder, name to serve it under) of a folder, or of a run by name or path; None is the newest run.

    Raises UserError N9-RUN-001 where there is no such run, N9-SRV-002 where the run has not exported a model yet.
    """
    if target is not None and (Path(target) / "config.json").is_file():
        folder = Path(target).resolve()
        inside_run = folder.name == "export" and folder.parent.parent.name == "stages"
        return Path(target), folder.parents[2].name if inside_run else folder.name
    run = find_run(store, target)
    for stage in EXPORTS:
        folder = run.stage(stage) / "export"
        if (folder / "config.json").is_file() and (run.stage(stage) / "manifest.json").is_file():
            return folder, run.path.resolve().name
    raise UserError(
        "N9-SRV-002", f"run `{run.path.name}` has no exported model yet", str(run.path), f"n9 run {run.path}/run.toml"
    )
