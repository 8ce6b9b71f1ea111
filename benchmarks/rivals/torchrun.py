"""torchrun as shipped, with a store prefix per attempt, and with a time-out of collectives far below torch's 1,800 s."""

from __future__ import annotations

import signal
import sys
from importlib.metadata import version
from pathlib import Path

import msgspec

from benchmarks.rivals.job import CHECKPOINT_EVERY, RANKS, SCRIPTS, Job, Outcome, free_port
from ninthsky.train.job import TrainJob

TIMEOUT_SECONDS = 15.0  # of collectives, where a rank is stopped
BLAMES = r"failed \(exitcode: -?\d+\) local_rank: (\d+)"
NAME = f"torchrun {version('torch').partition('+')[0]}"
SLOW = "no judge of slow ranks"


def launch(folder: Path, script: str, *arguments: str, ranks: int = RANKS) -> Job:
    """A script of ranks/ under torchrun."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--max-restarts", "2",
        "--master-addr", "127.0.0.1", "--master-port", str(free_port()), str(SCRIPTS / script), *arguments,
    ]  # fmt: skip
    return Job(folder, command, BLAMES)


def kill(folder: Path) -> Outcome:
    """With the prefix: as shipped it does not come back on gloo (run_torchrun has that)."""
    return follow(launch(folder, "plain.py", str(folder), "--prefix"), signal.SIGKILL, 45.0)


def stop(folder: Path) -> Outcome:
    job = launch(folder, "plain.py", str(folder), "--prefix", "--timeout", str(TIMEOUT_SECONDS))
    return follow(job, signal.SIGSTOP, 90.0)


def follow(job: Job, kind: signal.Signals, limit: float) -> Outcome:
    """One strike, and the end of the job."""
    try:
        return job.outcome(job.strike(kind), limit)
    finally:
        job.end()


def run_torchrun(folder: Path, job: TrainJob) -> dict[str, Outcome]:
    """Of the guard's own model, mesh and tokens: killed as shipped; with the prefix; stopped, with prefix and time-out."""
    cases = {
        "killed": (signal.SIGKILL, [], 30.0),
        "killed_prefix": (signal.SIGKILL, ["--prefix"], 45.0),
        "stopped_prefix": (signal.SIGSTOP, ["--prefix", "--timeout", str(TIMEOUT_SECONDS)], 90.0),
    }
    outcomes = {}
    for name, (kind, options, limit) in cases.items():
        there = folder / name
        there.mkdir(parents=True)
        own = msgspec.structs.replace(job, folder=str(there), checkpoint_every=CHECKPOINT_EVERY, events="")
        path = str(own.save(there / "train.json"))
        outcomes[name] = follow(launch(there, "decoder.py", path, *options, ranks=job.mesh.ranks), kind, limit)
        print(f"torchrun {name}: {outcomes[name]}", flush=True)
    return outcomes
