"""torchft: a lighthouse, and four replica groups of one rank each, DDP over its manager; healed from a peer, no files.

It has no launcher for one machine: a replica that ended is started again here at once, as a scheduler would. The lighthouse
waits 1 s for stragglers and takes a replica for gone after 2 s without its heartbeat (5 s as shipped); collectives, votes and
quorums are timed out at 5 s. It names replicas that left its quorum, not a cause.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.peers import interpreter
from benchmarks.rivals.job import RANK, RANKS, Job, Outcome, free_port
from benchmarks.rivals.torchrun import follow

VERSION = "2026.10.26"
NAME = f"torchft {VERSION}"
SLOW = "no judge of slow ranks"
TIMEOUT_SECONDS = 5.0


class Replicas(Job):
    """Goes on with the same processes: it trains again once two steps are done a pause after the strike."""

    def __init__(self, folder: Path) -> None:
        python = interpreter("rival-torchft", "torch==2.13.0", "numpy", f"torchft-nightly=={VERSION}")
        supervisor = [sys.executable, "-m", "benchmarks.rivals.torchft", python, str(folder), str(TIMEOUT_SECONDS)]
        super().__init__(folder, supervisor, rf"replica left the quorum: rank-({'|'.join(map(str, range(RANKS)))})")

    def _again(self, at: float) -> dict[str, Any] | None:
        """The first step done after its quorum changed: after the longest pause since the strike, once steps follow at pace."""
        lines = [line for line in self.history() if line["time"] > at - 1.0]
        gaps = [(later["time"] - earlier["time"], later) for earlier, later in itertools.pairwise(lines)]
        if not gaps or lines[-1]["time"] < at + 1.0:
            return None
        longest, first = max(gaps, key=lambda gap: gap[0])
        return first if longest > 0.5 and sum(line["time"] > first["time"] for line in lines) >= 3 else None


def kill(folder: Path) -> Outcome:
    return follow(Replicas(folder), signal.SIGKILL, 30.0)


def stop(folder: Path) -> Outcome:
    return follow(Replicas(folder), signal.SIGSTOP, 60.0)


def supervise(python: str, folder: Path, timeout: str) -> None:
    """Runs lighthouse and replicas, and starts replicas that ended again; says who is no more in the lighthouse's quorum."""
    port = free_port()
    lighthouse = subprocess.Popen(
        [str(Path(python).with_name("torchft_lighthouse")), "--bind", f"127.0.0.1:{port}", "--min_replicas", "1",
         "--join_timeout_ms", "1000", "--heartbeat_timeout_ms", "2000"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "RUST_LOG": "info"},
    )  # fmt: skip
    threading.Thread(target=listen, args=(lighthouse,), daemon=True).start()
    attempts = [0] * RANKS

    def start(rank: int) -> subprocess.Popen[bytes]:
        env = {
            **os.environ, "RANK": str(rank), "TORCHFT_LIGHTHOUSE": f"http://127.0.0.1:{port}",
            "TORCHELASTIC_RESTART_COUNT": str(attempts[rank]),
        }  # fmt: skip
        command = [python, RANK, str(folder), "--tool", "torchft", "--timeout", timeout]
        return subprocess.Popen(command, env=env)

    replicas = [start(rank) for rank in range(RANKS)]
    while True:
        time.sleep(0.05)
        for rank, replica in enumerate(replicas):
            if replica.poll() is not None:
                print(f"replica {rank} ended with {replica.returncode}, started again", flush=True)
                attempts[rank] += 1
                replicas[rank] = start(rank)


def listen(lighthouse: subprocess.Popen[str]) -> None:
    """Of its log: a line for each quorum, and one for each replica that was in a quorum and is not in the next one."""
    assert lighthouse.stdout is not None
    before: set[str] = set()
    for line in lighthouse.stdout:
        if "Quorum! Quorum {" not in line:
            continue
        now = set(re.findall(r'replica_id: "rank-(\d+)-:', line))
        for rank in sorted(before - now):
            print(f"replica left the quorum: rank-{rank}", flush=True)
        print(f"quorum of {len(now)}", flush=True)
        before = now


if __name__ == "__main__":
    supervise(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
