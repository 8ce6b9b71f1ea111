"""Ours: `n9 guard run -- torchrun ...` around the same script, which is started again from its own checkpoint."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from benchmarks.rivals.job import RANK, RANKS, Job, Outcome
from benchmarks.rivals.torchrun import follow

NAME = "ninthsky, guard run"


def launch(folder: Path, *options: str) -> Job:
    """The script under torchrun, as shipped, under the guard."""
    there = Path(sys.executable).parent
    command = [
        str(there / "n9"), "guard", "run", "--job", f"{folder}-{os.getpid()}", "--json", *options, "--",
        str(there / "torchrun"), "--standalone", "--nproc-per-node", str(RANKS), RANK, str(folder), "--tool", "ours",
    ]  # fmt: skip
    return Job(folder, command, r'(?=.*"fault\.named").*"rank": ?(\d+)')


def kill(folder: Path) -> Outcome:
    return follow(launch(folder, "--act"), signal.SIGKILL, 60.0)


def stop(folder: Path) -> Outcome:
    return follow(launch(folder, "--act"), signal.SIGSTOP, 90.0)


def slow(folder: Path, ratio: float) -> Outcome:
    """Only told: a slow rank of a foreign script is not moved."""
    job = launch(folder)
    try:
        return job.slowed(ratio, 60.0)
    finally:
        job.end()
