"""Ends of processes that are not ours: noticed at once by a pidfd; how they ended, as far as the kernel tells strangers.

While the dead process waits for its parent, /proc/PID/stat holds its exit code; from Linux 6.15 on the pidfd itself still
tells it afterwards (ioctl PIDFD_GET_INFO, include/uapi/linux/pidfd.h). Before it the code may be lost, and is then called
unknown.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ninthsky.evidence import Fact
from ninthsky.guard.agent.spawner import oom_kills
from ninthsky.guard.judges.exit import judge_exit, status_name
from ninthsky.guard.judges.verdict import Verdict
from ninthsky.guard.protocol import Exited

TOGETHER = 0.05  # seconds within which a job that is told to end loses its ranks
_INFO = struct.Struct("=QQ12I")  # struct pidfd_info, first version: mask, cgroup, 11 ids, exit code; 64 bytes
_GET_INFO = (3 << 30) | (_INFO.size << 16) | (0xFF << 8) | 11
_INFO_EXIT = 1 << 3


@dataclass(frozen=True)
class End:
    """`status` as in subprocess (negative is a signal), None where nobody could tell. `at` in Unix seconds.

    `oom`: kills for want of memory on this machine while it was watched.
    """

    pid: int
    status: int | None
    at: float
    oom: int


class Ends:
    """Watches processes in the running event loop; `on_end` hears of each end within milliseconds."""

    def __init__(self, on_end: Callable[[End], None]) -> None:
        self._on_end = on_end
        self._pid_of: dict[int, int] = {}
        self._oom = oom_kills()

    def watch(self, pids: Iterable[int]) -> list[int]:
        """Adds those that are not watched yet; returns the ones that are gone already or may not be watched."""
        gone = []
        for pid in dict.fromkeys(pids):
            if pid in self._pid_of.values():
                continue
            try:
                handle = os.pidfd_open(pid)
            except OSError:
                gone.append(pid)
                continue
            self._pid_of[handle] = pid
            asyncio.get_running_loop().add_reader(handle, self._ended, handle)
        return gone

    def close(self) -> None:
        for handle in list(self._pid_of):
            self._forget(handle)

    def _ended(self, handle: int) -> None:
        now, pid = time.time(), self._pid_of[handle]
        status = _zombie_status(pid)
        status = status if status is not None else _kept_status(handle)
        self._forget(handle)
        self._on_end(End(pid, status, now, max(0, oom_kills() - self._oom)))

    def _forget(self, handle: int) -> None:
        asyncio.get_running_loop().remove_reader(handle)
        del self._pid_of[handle]
        os.close(handle)


def _zombie_status(pid: int) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        text = Path(f"/proc/{pid}/stat").read_bytes()
        fields = text[text.rindex(b")") + 2 :].split()
        if fields[0] == b"Z":
            return _status(int(fields[49]))
    return None


def _kept_status(handle: int) -> int | None:
    with contextlib.suppress(OSError):
        request = _INFO.pack(_INFO_EXIT, *([0] * 13))
        answer = _INFO.unpack(fcntl.ioctl(handle, _GET_INFO, request))
        if answer[0] & _INFO_EXIT:
            return _status(answer[13])
    return None


def _status(code: int) -> int:
    """Of a wait status: what subprocess calls the return code."""
    return -(code & 0x7F) if code & 0x7F else (code >> 8) & 0xFF


@dataclass(frozen=True)
class Gone:
    """A rank that ended. `tail` is the end of its own log where it has one."""

    rank: int
    local: int
    end: End
    log: str = ""
    tail: str = ""


def judge_ends(gone: Sequence[Gone], alive: int, launcher: End | None) -> Verdict | None:
    """The first end that was no success is named, those after it are its echoes. None while all ended with success so far.

    `gone` in the order of time, `alive`: ranks that live. Where all end at once by one signal, nobody is blamed.
    """
    failed = [one for one in gone if one.end.status != 0]
    if not failed:
        return None
    first = failed[0]
    if _all_at_once(failed, alive, launcher):
        how = status_name(first.end.status or 0)
        text = f"all ranks ended at once by {how}: they were told to, or what they share failed (container, memory, watchdog)"
        facts = (Fact("ranks ended by it", float(len(failed)), source="pidfds"), Fact("within", TOGETHER, unit="s"))
        return Verdict("unknown", (), text, facts, ("one rank: none ended before the others",), 0.9)
    early = [one for one in gone if one.end.status == 0 and first.end.at - one.end.at > TOGETHER]
    after = failed[1:]
    more: tuple[Fact, ...] = ()
    if after:
        names = ", ".join(
            f"{one.rank} ({_how(one.end)}, {1000 * (one.end.at - first.end.at):.0f} ms later)" for one in after[:8]
        )
        more += (Fact("ended after it", names, source="pidfds"),)
    if early:
        names = ", ".join(str(one.rank) for one in early)
        more += (Fact("had ended with status 0 before", f"ranks {names}", source="pidfds"),)
    if first.end.status is None:
        text = "process ended; how, the kernel tells only its parent (Linux before 6.15)"
        return Verdict("exit", (first.rank,), text, (Fact("process", str(first.end.pid)), *more), (), 0.8)
    seen = Exited(0, first.local, first.end.pid, first.end.status, first.end.oom, first.log, first.tail)
    verdict = judge_exit(first.rank, seen, [])
    return Verdict("exit", verdict.ranks, verdict.text, verdict.facts + more, verdict.ruled_out, 1.0 if alive or after else 0.9)


def _how(end: End) -> str:
    return "unknown how" if end.status is None else status_name(end.status)


def _all_at_once(failed: Sequence[Gone], alive: int, launcher: End | None) -> bool:
    first = failed[0].end
    if first.status is None or first.status >= 0 or any(one.end.status != first.status for one in failed):
        return False
    if launcher is not None and abs(launcher.at - first.at) <= TOGETHER:
        return True
    return alive == 0 and len(failed) > 1 and failed[-1].end.at - first.at <= TOGETHER
