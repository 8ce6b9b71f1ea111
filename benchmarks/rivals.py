"""torchrun beside the guard: the same model on four gloo ranks, rank 2 killed or stopped from outside, timed in the same run.

Three runs, each ended at its limit if training has not come back by then: killed as shipped; killed with a store prefix per
attempt; stopped, with the prefix and a time-out of collectives far below torch's default of 1,800 s, so that it can come back.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import psutil

from ninthsky.run.folder import read_lines
from ninthsky.train.job import TrainJob

STRUCK = 2  # rank
STRIKE_AFTER = 14  # steps: the newest checkpoint is then of step CHECKPOINT_EVERY
CHECKPOINT_EVERY = 10
TIMEOUT_SECONDS = 15.0  # of collectives, where a rank is stopped
START_SECONDS = 60.0
_BLAMED = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+)")


@dataclass(frozen=True)
class Outcome:
    """What torchrun did about one fault. Seconds from the signal; None where it did not happen within `limit`."""

    named: float | None
    blamed: int | None  # the rank in the first line in which torchrun tells of a failure
    trained: float | None  # until rank 0 had finished a step in a later attempt
    steps_lost: int | None  # finished and gone: done again from the checkpoint
    limit: float


class _Torchrun:
    """One job under torchrun in a process group of its own; `blame` is its first word about a failed rank, and when."""

    def __init__(self, folder: Path, job: TrainJob, options: list[str]) -> None:
        self.folder = folder
        self.blame: tuple[float, int] | None = None
        folder.mkdir(parents=True)
        command = [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(job.mesh.ranks), "--max-restarts", "2",
            "--master-addr", "127.0.0.1", "--master-port", str(_free_port()),
            str(Path(__file__).with_name("torchrun_rank.py")), str(job.save(folder / "train.json")), *options,
        ]  # fmt: skip
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
        self._process = subprocess.Popen(
            command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self._log: list[str] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._log.append(line)
            found = _BLAMED.search(line)
            if found and self.blame is None:
                self.blame = time.time(), int(found[2])

    def history(self) -> list[dict[str, Any]]:
        path = self.folder / "history.jsonl"
        return list(read_lines(path)) if path.exists() else []

    def strike(self, kind: signal.Signals) -> float:
        """Waits until enough steps are done, sends the signal, returns when. Raises RuntimeError where it never trained."""
        end = time.monotonic() + START_SECONDS
        while len(self.history()) < STRIKE_AFTER:
            if time.monotonic() > end or self._process.poll() is not None:
                raise RuntimeError("torchrun did not start training:\n" + "".join(self._log[-30:]))
            time.sleep(0.05)
        (first, *_) = read_lines(self.folder / f"rank-{STRUCK}.jsonl")
        at = time.time()
        os.kill(first["pid"], kind)
        return at

    def outcome(self, at: float, limit: float) -> Outcome:
        again: dict[str, Any] | None = None
        while again is None and time.time() < at + limit and self._process.poll() is None:
            time.sleep(0.05)
            again = next((line for line in self.history() if line["attempt"] > 0), None)
        named, blamed = (None, None) if self.blame is None else (self.blame[0] - at, self.blame[1])
        if again is None:
            return Outcome(named, blamed, None, None, limit)
        before = max(line["step"] for line in self.history() if line["attempt"] == 0)
        return Outcome(named, blamed, again["time"] - at, before + 1 - again["step"], limit)

    def end(self) -> None:
        """Kills torchrun and its ranks, the stopped one too: torchrun puts each in a session of its own."""
        pids = [line["pid"] for path in self.folder.glob("rank-*.jsonl") for line in read_lines(path)]
        # Those of a new start may not have said a word yet.
        if self._process.poll() is None:
            pids += [child.pid for child in psutil.Process(self._process.pid).children(recursive=True)]
        self._process.kill()
        self._process.wait()
        for pid in set(pids):
            if _is_rank(pid):
                os.kill(pid, signal.SIGKILL)


def run_torchrun(folder: Path, job: TrainJob) -> dict[str, Outcome]:
    """The three runs, by name. `job` has the guard's model, mesh and tokens; folders under `folder` are made."""
    cases = {
        "killed": (signal.SIGKILL, [], 30.0),
        "killed_prefix": (signal.SIGKILL, ["--prefix"], 45.0),
        "stopped_prefix": (signal.SIGSTOP, ["--prefix", "--timeout", str(TIMEOUT_SECONDS)], 90.0),
    }
    outcomes = {}
    for name, (kind, options, limit) in cases.items():
        there = folder / name
        own = msgspec.structs.replace(job, folder=str(there), checkpoint_every=CHECKPOINT_EVERY, events="")
        torchrun = _Torchrun(there, own, options)
        try:
            outcomes[name] = torchrun.outcome(torchrun.strike(kind), limit)
        finally:
            torchrun.end()
        print(f"torchrun {name}: {outcomes[name]}", flush=True)
    return outcomes


def _is_rank(pid: int) -> bool:
    """A process id may have been given to another process since."""
    try:
        return b"torchrun_rank.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])
