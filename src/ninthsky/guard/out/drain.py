"""Orders to the cluster's scheduler about a host that should get no more work: advised, or given where `[guard] drain` says so.

Slurm: `scontrol update nodename=NODE state=drain reason=...`. Kubernetes: `kubectl cordon NODE`, and a node condition that node
controllers can act on. Commands are lists of words and never pass through a shell.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import threading
from collections.abc import Callable, Mapping
from typing import Literal

Scheduler = Literal["slurm", "kubernetes"]
Drain = Literal["advise", "slurm", "kubernetes"]

SECONDS = 30.0
REASON_LENGTH = 160
CONDITION = "NinthskyFault"


def scheduler_here(environment: Mapping[str, str] = os.environ) -> Scheduler | None:
    """Which one started this process, by the variables that it sets."""
    if "SLURM_JOB_ID" in environment:
        return "slurm"
    return "kubernetes" if "KUBERNETES_SERVICE_HOST" in environment else None


def commands(scheduler: Scheduler, node: str, reason: str) -> list[list[str]]:
    """What takes a node out of use. `reason` is cut and made printable."""
    said = "ninthsky: " + "".join(letter if letter.isprintable() else " " for letter in reason)[:REASON_LENGTH]
    if scheduler == "slurm":
        return [["scontrol", "update", f"nodename={node}", "state=drain", f"reason={said}"]]
    condition = {"type": CONDITION, "status": "True", "reason": "CardOrHostFault", "message": said}
    patch = json.dumps({"status": {"conditions": [condition]}})
    return [
        ["kubectl", "cordon", "--", node],
        ["kubectl", "patch", "node", node, "--subresource=status", "--type=strategic", f"--patch={patch}"],
    ]


def advice(node: str, reason: str, scheduler: Scheduler | None) -> str:
    """As it goes into a fault's remedy. Where no scheduler is known, Slurm's command stands for it."""
    return "advised: " + "; ".join(shlex.join(words) for words in commands(scheduler or "slurm", node, reason)[:1])


def drain(scheduler: Scheduler, node: str, reason: str, told: Callable[[bool, str], None]) -> Callable[[threading.Event], bool]:
    """A call for a Calls queue: runs the commands one after another; `told` hears whether all succeeded, and what they said."""

    def call(ending: threading.Event) -> bool:
        for words in commands(scheduler, node, reason):
            try:
                run = subprocess.run(
                    words,
                    capture_output=True,
                    text=True,
                    errors="replace",
                    timeout=SECONDS,
                    check=False,
                    stdin=subprocess.DEVNULL,
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                told(False, f"{words[0]}: {error}"[:400])
                return False
            if run.returncode:
                told(False, f"{shlex.join(words[:3])}: status {run.returncode}: {run.stderr.strip()}"[:400])
                return False
        told(True, "")
        return True

    return call
