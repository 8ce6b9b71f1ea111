"""Whose an agent's folder in shared memory is: one living agent's, or nobody's."""

from __future__ import annotations

import os
from pathlib import Path

from ninthsky.errors import UserError
from ninthsky.guard.agent.store import remove_folder


def claim_folder(folder: Path) -> None:
    """Makes the agent's folder (mode 0700), clearing what a dead agent left. Raises UserError N9-GRD-003 if one lives."""
    refuse_if_owned(folder)
    remove_folder(folder)
    folder.mkdir(mode=0o700, parents=True)
    (folder / "agent.pid").write_text(f"{os.getpid()} {_start_time(os.getpid())}\n")


def refuse_if_owned(folder: Path) -> None:
    """Raises UserError N9-GRD-003 while the agent that made this folder lives."""
    try:
        pid, started = (folder / "agent.pid").read_text().split()
    except (OSError, ValueError):
        return
    if _start_time(int(pid)) == started:
        what = f"process {pid} is the agent of a job with this run id"
        raise UserError("N9-GRD-003", what, str(folder), f"kill {pid}, or choose another id")


def _start_time(pid: int) -> str:
    """The process's start in clock ticks: a pid alone may have been given to another process since."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return "gone"
    return text[text.rindex(b")") + 2 :].split()[19].decode()
