"""A job under any launcher: started in a folder of its own, struck from outside, timed by what it writes, and ended."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.disturb import stuttering
from ninthsky.run.folder import read_lines

RANKS = 4
STRUCK = 2  # rank
STRIKE_AFTER = 14  # steps: the newest checkpoint is then of step CHECKPOINT_EVERY
CHECKPOINT_EVERY = 10
START_SECONDS = 90.0
STOP_SECONDS = 0.02  # of each stop of a slowed rank
SCRIPTS = Path(__file__).parent / "ranks"  # apart: in one folder with it, torchft.py would be found for torchft itself
RANK = str(SCRIPTS / "plain.py")


@dataclass(frozen=True)
class Outcome:
    """What was done about one fault. Seconds from the strike; None where it did not happen within `limit`."""

    named: float | None
    blamed: int | None  # the rank that was named first
    trained: float | None  # until rank 0 had finished a step without the struck process
    steps_lost: int | None  # finished and gone: done again from a checkpoint
    limit: float

    @property
    def right(self) -> bool:
        return self.blamed == STRUCK


class Job:
    """One launcher with its ranks. `blames`: groups of a line of its output in which it names a rank (the first group)."""

    def __init__(self, folder: Path, command: Sequence[str], blames: str, environment: Mapping[str, str] | None = None) -> None:
        self.folder, self._blames = folder, re.compile(blames)
        self.blame: tuple[float, int] | None = None
        self.deaf = True  # what was said before the strike names nobody
        folder.mkdir(parents=True, exist_ok=True)
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPTS.parents[2]), **(environment or {})}
        self._process = subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            start_new_session=True,
        )  # fmt: skip
        self.log: list[str] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.log.append(line)
            found = self._blames.search(line)
            if found and self.blame is None and not self.deaf:
                self.blame = time.time(), int(found[1])

    def history(self) -> list[dict[str, Any]]:
        path = self.folder / "history.jsonl"
        return list(read_lines(path)) if path.exists() else []

    def begin(self, steps: int = STRIKE_AFTER) -> int:
        """Waits until so many steps are done. -> the struck rank's process id. Raises RuntimeError with the log's end."""
        end = time.monotonic() + START_SECONDS
        while len(self.history()) < steps:
            if time.monotonic() > end or self._process.poll() is not None:
                raise RuntimeError("training did not start:\n" + "".join(self.log[-30:]))
            time.sleep(0.05)
        self.deaf = False
        return int(list(read_lines(self.folder / f"rank-{STRUCK}.jsonl"))[-1]["pid"])

    def strike(self, kind: signal.Signals) -> float:
        """Begins, sends the signal, and returns when."""
        pid, at = self.begin(), time.time()
        os.kill(pid, kind)
        return at

    def outcome(self, at: float, limit: float) -> Outcome:
        """Follows it until a step is done without the struck process: in another attempt, or, where the tool goes on with
        the same processes, after a pause that is no step's."""
        again: dict[str, Any] | None = None
        while again is None and time.time() < at + limit and self._process.poll() is None:
            time.sleep(0.05)
            again = self._again(at)
        named, blamed = (None, None) if self.blame is None else (self.blame[0] - at, self.blame[1])
        if again is None:
            return Outcome(named, blamed, None, None, limit)
        before = max(line["step"] for line in self.history() if line["time"] <= at + 0.02)
        return Outcome(named, blamed, again["time"] - at, max(0, before + 1 - again["step"]), limit)

    def _again(self, at: float) -> dict[str, Any] | None:
        return next((line for line in self.history() if line["attempt"] > 0), None)

    def slowed(self, ratio: float, limit: float, deaf: float = 0.0) -> Outcome:
        """The rank is stopped again and again, so that its work takes `ratio` times as long; ends when somebody is named. For
        `deaf` seconds nothing counts: a report that comes then is mostly about the time before."""
        pid = self.begin(5 * STRIKE_AFTER)
        at, self.deaf, self.blame = time.time(), True, None
        with stuttering(pid, STOP_SECONDS, STOP_SECONDS / (ratio - 1)):
            time.sleep(deaf)
            self.deaf = False
            while self.blame is None and time.time() < at + limit and self._process.poll() is None:
                time.sleep(0.05)
        named, blamed = (None, None) if self.blame is None else (self.blame[0] - at, self.blame[1])
        return Outcome(named, blamed, None, None, limit)

    def end(self) -> None:
        """Kills the launcher and its ranks, the stopped one too: some launchers put each in a session of its own."""
        family = psutil.Process(self._process.pid).children(recursive=True) if self._process.poll() is None else []
        pids = [line["pid"] for path in self.folder.glob("rank-*.jsonl") for line in read_lines(path)]
        self._process.kill()
        self._process.wait()
        for child in family:
            try:
                child.kill()
            except psutil.NoSuchProcess:
                continue
        for pid in set(pids):
            if _is_rank(pid):
                os.kill(pid, signal.SIGKILL)


def _is_rank(pid: int) -> bool:
    """A process id may have been given to another process since."""
    try:
        return b"benchmarks/rivals/ranks/" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])
