"""NVRx: ft_launcher with heartbeats, with sections, and its straggler detector.

The launcher's limits are as low as is prudent for steps of 0.05 s: 5 s without a heartbeat, 5 s in the section in which a rank
works by itself, 30 s in the one in which all wait for each other. Its store gets a prefix per attempt, as torchrun's.
"""

from __future__ import annotations

import signal
from pathlib import Path

from benchmarks.peers import interpreter
from benchmarks.rivals.job import RANK, RANKS, Job, Outcome, free_port
from benchmarks.rivals.torchrun import follow

VERSION = "0.4.1"
NAME = f"NVRx {VERSION}"
LIMIT_SECONDS = 5.0
REPORT_SECONDS = 5.0  # between two reports of the detector
BLAMES = r"(?:failed \(exitcode: -?\d+\) local_rank: |RankMonServer\d+@[^:\s]+:(?=\d+\] (?:Did not get|Section)))(\d+)"
STRAGGLER = r"STRAGGLER rank (\d+) in compute"


def launch(folder: Path, watch: str = "", *options: str, blames: str = BLAMES) -> Job:
    python = Path(interpreter("rival-nvrx", "torch==2.13.0", "numpy", f"nvidia-resiliency-ext=={VERSION}"))
    limits = {
        "heartbeats": ["--ft-rank-heartbeat-timeout", str(LIMIT_SECONDS), "--ft-initial-rank-heartbeat-timeout", "60"],
        "sections": ["--ft-rank-section-timeouts", f"compute:{LIMIT_SECONDS},reduce:30",
                     "--ft-rank-out-of-section-timeout", "60",
                     "--ft-initial-rank-heartbeat-timeout", "3600", "--ft-rank-heartbeat-timeout", "3600"],
    }.get(watch, [])  # fmt: skip
    endpoint = f"127.0.0.1:{free_port()}"
    command = [
        str(python.with_name("ft_launcher")), "--nnodes", "1", "--nproc-per-node", str(RANKS), "--max-restarts", "2",
        "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", "rivals",
        "--ft-workload-check-interval", "0.5", "--ft-enable-nic-monitor", "False", *limits,
        RANK, str(folder), "--tool", "nvrx", "--prefix", *(["--watch", watch] if watch else []), *options,
    ]  # fmt: skip
    return Job(folder, command, blames)


def kill(folder: Path) -> Outcome:
    return follow(launch(folder, "heartbeats"), signal.SIGKILL, 60.0)


def stop(folder: Path) -> Outcome:
    return follow(launch(folder, "heartbeats"), signal.SIGSTOP, 90.0)


def stop_sections(folder: Path) -> Outcome:
    return follow(launch(folder, "sections"), signal.SIGSTOP, 90.0)


def slow(folder: Path, ratio: float) -> Outcome:
    """Its detector with the section in which a rank works by itself, reported every 5 s, its own thresholds."""
    job = launch(folder, "", "--detector", str(REPORT_SECONDS), blames=STRAGGLER)
    try:
        return job.slowed(ratio, 60.0, deaf=REPORT_SECONDS)
    finally:
        job.end()
