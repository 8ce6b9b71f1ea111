"""DLRover's check of nodes before training: four nodes of one rank each on this machine, with its local master, on gloo.

The check runs matmuls and all-reduces in pairs of nodes, twice; a node that takes more than twice the median is its straggler.
It writes to one fixed folder, so that each node gets a mount of its own there (root only). Node 2's process of the check is
stopped again and again from its first moment on. `dlrover-run --standalone` as launcher is tried as it is.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import psutil

from benchmarks.disturb import stuttering
from benchmarks.peers import interpreter
from benchmarks.rivals.job import RANK, RANKS, STOP_SECONDS, STRUCK, Job, Outcome, free_port
from benchmarks.rivals.torchrun import BLAMES, follow

VERSION = "0.6.1"
NAME = f"DLRover {VERSION}"
TIMEOUT_SECONDS = 15.0  # of collectives, where a rank is stopped
CHECKED = "/tmp/dlrover/network_check"  # DLRover's ConfigPath.NETWORK_CHECK_DATA_DIR
CHECK_SECONDS = 120.0
TOLD = re.compile(r"stragglers are: \[(\d*)")


def python() -> Path:
    # Its master reads the version of protobuf, which its own extras do not ask for.
    return Path(interpreter("rival-dlrover", "torch==2.13.0", "numpy", "protobuf", f"dlrover[k8s,torch]=={VERSION}"))


def launch(folder: Path, *options: str) -> Job:
    command = [
        str(python().with_name("dlrover-run")), "--standalone", "--nproc-per-node", str(RANKS), "--max-restarts", "2",
        RANK, str(folder), "--tool", "dlrover", "--prefix", *options,
    ]  # fmt: skip
    return Job(folder, command, BLAMES)


def kill(folder: Path) -> Outcome:
    return follow(launch(folder), signal.SIGKILL, 90.0)


def stop(folder: Path) -> Outcome:
    return follow(launch(folder, "--timeout", str(TIMEOUT_SECONDS)), signal.SIGSTOP, 120.0)


def slow(folder: Path, ratio: float) -> Outcome:
    """The check of nodes, one of them so much slower. Raises RuntimeError where it does not run."""
    if os.geteuid() != 0:
        raise RuntimeError("four nodes on one machine need mounts of their own: root only")
    folder.mkdir(parents=True, exist_ok=True)
    Path(CHECKED).mkdir(parents=True, exist_ok=True)
    port, begun = free_port(), time.time()
    with ExitStack() as stack:
        master = [str(python()), "-u", "-m", "dlrover.python.master.main", "--port", str(port), "--node_num", str(RANKS),
                  "--job_name", "rivals", "--platform", "local"]  # fmt: skip
        _start(stack, folder / "master.log", master, {})
        nodes = [_start(stack, folder / f"node-{n}.log", _node(folder), _place(n, port)) for n in range(RANKS)]
        pid = _checking(nodes[STRUCK], begun + CHECK_SECONDS, folder)
        while pid is not None:  # two rounds, each with a process of its own
            with stuttering(pid, STOP_SECONDS, STOP_SECONDS / (ratio - 1)):
                while psutil.pid_exists(pid) and _told(folder) is None and time.time() < begun + CHECK_SECONDS:
                    time.sleep(0.05)
            pid = _checking(nodes[STRUCK], begun + CHECK_SECONDS, folder)
        told = _told(folder)
        if told is None:
            log = (folder / "node-0.log").read_text("utf-8", "replace")
            raise RuntimeError(f"the check did not end within {CHECK_SECONDS:.0f} s: {log[-300:]}")
        return Outcome(told[0] - begun if told[1] is not None else None, told[1], None, None, CHECK_SECONDS)


def _place(node: int, port: int) -> dict[str, str]:
    numbers = {"NODE_ID": node, "NODE_RANK": node, "WORKER_RANK": node, "NODE_NUM": RANKS, "WORKER_NUM": RANKS}
    return {"DLROVER_MASTER_ADDR": f"127.0.0.1:{port}", "ELASTIC_JOB_NAME": "rivals", **{k: str(v) for k, v in numbers.items()}}


def _node(folder: Path) -> list[str]:
    command = [str(python().with_name("dlrover-run")), f"--nnodes={RANKS}", "--nproc-per-node=1", "--network-check",
               RANK, str(folder), "--tool", "dlrover"]  # fmt: skip
    return ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {CHECKED} && exec "$@"', "sh", *command]


def _start(stack: ExitStack, log: Path, command: list[str], more: dict[str, str]) -> subprocess.Popen[bytes]:
    """A process with a log of its own, ended with all its children when the stack is."""
    file = stack.enter_context(log.open("wb"))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **more}
    process = subprocess.Popen(command, env=env, stdout=file, stderr=file, start_new_session=True)

    def end() -> None:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.kill()
        process.wait()
        for child in family:
            try:
                child.kill()
            except psutil.NoSuchProcess:
                continue

    stack.callback(end)
    return process


def _checking(node: subprocess.Popen[bytes], end: float, folder: Path) -> int | None:
    """The node's process of the check, once there is one; None when the check has said who is slow, or at `end`."""
    while time.time() < end and node.poll() is None and _told(folder) is None:
        for child in psutil.Process(node.pid).children(recursive=True):
            try:
                if any("node_check" in word for word in child.cmdline()):
                    return child.pid
            except psutil.Error:
                continue
        time.sleep(0.05)
    return None


def _told(folder: Path) -> tuple[float, int | None] | None:
    """When node 0 told who is slow after the second round, and whom; None before."""
    log = folder / "node-0.log"
    found = TOLD.findall(log.read_text("utf-8", "replace")) if log.exists() else []
    slow = [int(node) for node in found if node]
    if slow:
        return time.time(), slow[0]
    return (time.time(), None) if len(found) >= 2 or (folder / "rank-0.jsonl").exists() else None
