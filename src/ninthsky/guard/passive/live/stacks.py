"""Python stacks of all local ranks by py-spy, grouped: the one that stands elsewhere than its peers is told.

py-spy reads the process's memory from outside and, with --nonblocking, never stops it. The grouping is ByteRobust's
(arXiv 2509.16293).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 8.0  # for all ranks of a host together
SHOWN = 4  # frames in a text
LIBRARY = re.compile(r"/(lib|lib64)/python\d[\d.]*/|/site-packages/|/dist-packages/")

# Files in which a rank waits for others: collectives, the reducer that runs them in backward, waiting for the device.
WAITS = (
    "torch/distributed/", "torch/nn/parallel/", "torch/autograd/", "torch/cuda/", "torch/npu/", "torch_npu/", "deepspeed/comm/",
    "horovod/", "mpi4py/", "megatron/core/pipeline_parallel/p2p", "accelerate/utils/operations",
)  # fmt: skip
CALLS = frozenset({"synchronize", "barrier", "wait_for_everyone", "all_reduce", "all_gather", "broadcast", "monitored_barrier"})


@dataclass(frozen=True)
class Frame:
    """One call, `file` as py-spy shortens it. `own`: of the program, not of a library."""

    call: str
    file: str
    line: int
    own: bool = True

    def __str__(self) -> str:
        return f"{self.call} ({self.file}:{self.line})"


@dataclass(frozen=True)
class Stack:
    """The main thread's, innermost first."""

    frames: tuple[Frame, ...]

    def __str__(self) -> str:
        more = " < ..." if len(self.frames) > SHOWN else ""
        return " < ".join(map(str, self.frames[:SHOWN])) + more if self.frames else "no Python frame"

    @property
    def head(self) -> str:
        """The innermost call, and the program's own line that led there."""
        first = self.frames[0] if self.frames else None
        own = next((frame for frame in self.frames if frame.own), None)
        return f"{first}" if own in {None, first} else f"{first}, called from {own}"

    @property
    def waits(self) -> bool:
        """Whether the innermost call is one that waits for other ranks."""
        inner = self.frames[:1]
        return any(frame.call in CALLS or frame.file.startswith(WAITS) for frame in inner)


@dataclass(frozen=True)
class Stacks:
    """Of one moment, by rank; `active` ones ran when they were looked at.

    `trouble` says in one line why some are missing, with what to type.
    """

    at: float  # monotonic seconds
    of: Mapping[int, Stack]
    trouble: str = ""
    active: frozenset[int] = frozenset()


def take_stacks(pids: Mapping[int, int]) -> Stacks:
    """Of the main threads of these processes (rank -> pid), all at once; takes tens of milliseconds and at most SECONDS."""
    at = time.monotonic()
    program = _program()
    if program is None:
        return Stacks(at, {}, "py-spy is not installed, so no stacks: pip install py-spy")
    asked = {
        rank: subprocess.Popen(
            [program, "dump", "--json", "--nonblocking", "--pid", str(pid)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank, pid in pids.items()
    }  # fmt: skip
    found: dict[int, Stack] = {}
    active = set[int]()
    trouble = ""
    for rank, run in asked.items():
        try:
            out, complaint = run.communicate(timeout=max(0.1, at + SECONDS - time.monotonic()))
        except subprocess.TimeoutExpired:
            run.kill()
            run.communicate()
            trouble = trouble or f"no stack of rank {rank}: py-spy took longer than {SECONDS:.0f} s"
            continue
        parsed = _parsed(out, pids[rank]) if run.returncode == 0 else None
        if parsed is not None:
            found[rank] = parsed[0]
            active |= {rank} if parsed[1] else set()
        else:
            trouble = trouble or f"no stack of rank {rank}: {_why(complaint.decode('utf-8', 'replace'))}"
    return Stacks(at, found, trouble, frozenset(active))


def _program() -> str | None:
    beside = Path(sys.executable).parent / "py-spy"
    return str(beside) if beside.is_file() else shutil.which("py-spy")


def _parsed(out: bytes, pid: int) -> tuple[Stack, bool] | None:
    """The main thread's, and whether it ran."""
    try:
        threads: list[dict[str, Any]] = json.loads(out)
        main = next((t for t in threads if t["os_thread_id"] == pid), None) or threads[0]
        return Stack(tuple(map(_frame, main["frames"]))), bool(main["active"])
    except (ValueError, KeyError, TypeError, IndexError):
        return None


def _frame(frame: dict[str, Any]) -> Frame:
    path = str(frame["filename"])
    return Frame(
        frame["name"], frame["short_filename"] or path, int(frame["line"]), not (path.startswith("<") or LIBRARY.search(path))
    )


def _why(complaint: str) -> str:
    said = complaint.lower()
    if "permission" in said or "operation not permitted" in said:
        return f"the kernel does not allow it: {_allow()}"
    if "failed to find a python interpreter" in said or "python version" in said:
        return "no Python in that process"
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    return (lines[0] if lines else "py-spy said nothing")[:200]


def _allow() -> str:
    try:
        scope = Path("/proc/sys/kernel/yama/ptrace_scope").read_text().strip()
    except OSError:
        scope = "0"
    if scope in {"1", "2"}:
        return f"ptrace_scope is {scope}; type: sudo sysctl kernel.yama.ptrace_scope=0 (or start this watch with sudo)"
    return "watch as the job's user or with sudo; in a container, start it with --cap-add=SYS_PTRACE"
