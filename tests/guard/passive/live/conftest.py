from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ninthsky.guard.passive.live.processes import Rank, find_ranks


class Job:
    """A launcher of lockstep.py with its ranks at work."""

    def __init__(self, folder: Path, world: int) -> None:
        self.folder = folder
        self.launcher = subprocess.Popen([sys.executable, str(Path(__file__).with_name("lockstep.py")), folder, str(world)])
        logs = [folder / f"rank{rank}.log" for rank in range(world)]
        end = time.monotonic() + 60
        while not all(log.exists() and "step 10" in log.read_text() for log in logs):
            assert time.monotonic() < end and self.launcher.poll() is None, "the job did not start"
            time.sleep(0.02)
        self.ranks: dict[int, Rank] = {rank.rank: rank for rank in find_ranks([self.launcher.pid])}

    def signal(self, rank: int, number: signal.Signals) -> None:
        os.kill(self.ranks[rank].pid, number)

    def order(self, rank: int, text: str | None) -> None:
        path = self.folder / f"rank-{rank}"
        path.unlink() if text is None else path.write_text(text)

    def end(self) -> None:
        for rank in self.ranks.values():
            try:
                os.kill(rank.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.launcher.kill()
        self.launcher.wait()


MakeLockstep = Callable[[int], Job]


@pytest.fixture
def lockstep(tmp_path: Path) -> Iterator[MakeLockstep]:
    """Starts jobs of so many ranks, and ends them."""
    jobs: list[Job] = []

    def start(world: int) -> Job:
        folder = tmp_path / f"job-{len(jobs)}"
        folder.mkdir()
        jobs.append(Job(folder, world))
        return jobs[-1]

    yield start
    for job in jobs:
        job.end()
