"""Starts the processes of a host's card slots and sees at once when one ends. What it started never outlives it."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PR_SET_PDEATHSIG = 1
BACKGROUND_NICE = 5
WATCHER_NICE = -5
_INHERITED_FILES = resource.getrlimit(resource.RLIMIT_NOFILE)
_INHERITED_NICE = os.getpriority(os.PRIO_PROCESS, 0)
_libc = ctypes.CDLL(None, use_errno=True)
_TICKS = os.sysconf("SC_CLK_TCK")


def die_with_parent(parent: int, signal_: int = signal.SIGKILL) -> Callable[[], None]:
    """For `preexec_fn`: the kernel signals the child when the thread that started it ends."""

    def prepare() -> None:
        _libc.prctl(PR_SET_PDEATHSIG, signal_, 0, 0, 0)
        if os.getppid() != parent:  # it ended between fork and prctl
            os._exit(1)

    return prepare


@dataclass
class Process:
    """A process in a card slot. `number` counts the processes that this slot has had."""

    slot: int
    number: int
    popen: subprocess.Popen[bytes]
    folder: Path  # its private folder of shards
    record: Path
    log: Path
    oom_before: int
    background: bool
    connection: asyncio.StreamWriter | None = field(default=None, repr=False)

    @property
    def pid(self) -> int:
        return self.popen.pid


class Spawner:
    """Processes by slot. `on_exit(process, status)` is called in the event loop, a few milliseconds after the end."""

    def __init__(
        self,
        command: Sequence[str],
        env: dict[str, str],
        folder: Path,
        logs: Path,
        host: str,
        on_exit: Callable[[Process, int], None],
    ) -> None:
        self.processes: dict[int, Process] = {}
        self._command, self._env, self._folder, self._logs, self._host = list(command), env, folder, logs, host
        self._on_exit = on_exit
        self._count: dict[int, int] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def start(self, slot: int, *, background: bool = False) -> Process:
        """Starts the job's command for a slot. `background`: at low priority, so that it does not slow its neighbours."""
        number = self._count[slot] = self._count.get(slot, 0) + 1
        name = f"slot-{slot}"
        record = self._folder / f"{name}.record"
        record.unlink(missing_ok=True)  # a frozen predecessor may still write into the old one
        private = self._folder / f"{name}-{number}"
        private.mkdir(mode=0o700)
        log = self._logs / f"{self._host}-{name}-{number}.log"
        env = {
            **os.environ,
            **self._env,
            "N9_AGENT": str(self._folder / "agent.sock"),
            "N9_RECORD": str(record),
            "N9_SLOT": str(slot),
            "N9_HOST": self._host,
            "N9_SHARDS": str(private),
        }
        lower = background and _can_raise_priority()
        with log.open("ab") as output:
            popen = subprocess.Popen(
                self._command,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=_prepare(os.getpid(), BACKGROUND_NICE if lower else 0),
            )
        process = Process(slot, number, popen, private, record, log, oom_kills(), lower)
        self.processes[slot] = process
        descriptor = os.pidfd_open(popen.pid)
        asyncio.get_running_loop().add_reader(descriptor, self._ended, process, descriptor)
        return process

    def find(self, pid: int) -> Process | None:
        for process in self.processes.values():
            if process.pid == pid:
                return process
        return None

    def slot_of(self, pid: int) -> int:
        """The slot of a process that was started here, or of one that it started; -1 for any other."""
        for process in self.processes.values():
            if process.pid == pid or (process.popen.poll() is None and descends_from(pid, process.pid)):
                return process.slot
        return -1

    def kill(self, process: Process) -> None:
        """SIGKILL; also ends a frozen process."""
        if process.popen.poll() is None:
            process.popen.kill()

    def to_foreground(self, process: Process) -> None:
        """Full priority, for every thread of the process."""
        if not process.background:
            return
        process.background = False
        with contextlib.suppress(OSError):  # it may be gone already, which its exit tells
            for task in os.listdir(f"/proc/{process.pid}/task"):
                os.setpriority(os.PRIO_PROCESS, int(task), _INHERITED_NICE)

    def end_all(self) -> None:
        """Kills everything and waits for it."""
        for process in self.processes.values():
            self.kill(process)
        for process in self.processes.values():
            process.popen.wait()

    def _ended(self, process: Process, descriptor: int) -> None:
        status = process.popen.poll()
        if status is None:
            return
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
        if self.processes.get(process.slot) is process:
            del self.processes[process.slot]
        self._on_exit(process, status)


def _prepare(parent: int, nice: int) -> Callable[[], None]:
    die = die_with_parent(parent)

    def prepare() -> None:
        die()
        wanted = _INHERITED_NICE + nice
        if os.getpriority(os.PRIO_PROCESS, 0) != wanted:  # the watcher's own priority is not for its ranks
            os.setpriority(os.PRIO_PROCESS, 0, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, _INHERITED_FILES)

    return prepare


def watch_first() -> None:
    """A watcher that gets no turn on a crowded machine would take its own silence for a fault. Where it may, it goes first.

    It also takes all the descriptors that it may have: strangers' connections cost one each until they are cut off.
    """
    hard = _INHERITED_FILES[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, WATCHER_NICE)


def _can_raise_priority() -> bool:
    """Lowering a priority is only right where it can be raised again."""
    return os.geteuid() == 0 or resource.getrlimit(resource.RLIMIT_NICE)[0] >= 20


def process_state(pid: int) -> tuple[str, float]:
    """State letter of /proc/PID/stat and processor seconds used; ("X", 0) for a process that is gone."""
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
    except OSError:
        return "X", 0.0
    try:
        return stat_of(descriptor)
    finally:
        os.close(descriptor)


def stat_of(descriptor: int) -> tuple[str, float]:
    """The same from an open /proc/PID/stat, as it is now."""
    try:
        text = os.pread(descriptor, 2048, 0)
    except ProcessLookupError:
        return "X", 0.0
    fields = text[text.rindex(b")") + 2 :].split(maxsplit=13)
    return fields[0].decode(), (int(fields[11]) + int(fields[12])) / _TICKS


def descends_from(pid: int, ancestor: int) -> bool:
    """Whether a process is another or its child, at any depth: a rank may be started through a shell."""
    while pid > 1:
        if pid == ancestor:
            return True
        try:
            text = Path(f"/proc/{pid}/stat").read_bytes()
        except OSError:
            return False
        pid = int(text[text.rindex(b")") + 2 :].split()[1])
    return False


def oom_kills() -> int:
    """Processes that the kernel has killed for want of memory since it started."""
    try:
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


def tail_of(path: Path, limit: int = 2_000) -> str:
    """The end of a log, whole lines."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - limit))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return text if size <= limit else text.partition("\n")[2]
