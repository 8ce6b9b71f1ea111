"""Runs a guarded job from its first process to its result: controller, agents, ranks, and nothing left behind.

spec = JobSpec(run_id="demo", folder=..., command=[sys.executable, "-m", "ninthsky.train.rank.elastic"], world=4,
               hosts=[HostSpec(name="host-0", slots=2), HostSpec(name="host-1", slots=2)], watch=Watch(action="act"))
result = run_job(spec, on_event=print)
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from ninthsky.errors import OK, UserError
from ninthsky.guard.agent.owner import refuse_if_owned
from ninthsky.guard.agent.spawner import die_with_parent
from ninthsky.guard.agent.store import remove_folder
from ninthsky.guard.faults import Fault, read_faults
from ninthsky.guard.keys import CONTROLLER, STANDBY, forge
from ninthsky.guard.picture import FILE
from ninthsky.guard.spec import HostSpec, Injected, JobSpec, Standby, Watch
from ninthsky.run.folder import read_json

__all__ = ["HostSpec", "Injected", "JobResult", "JobSpec", "Standby", "Watch", "run_job"]

POLL_SECONDS = 0.1
CONTROLLER_RESTARTS = 5
TAKE_OVER_SECONDS = 10.0  # for a standby, before a killed controller is started again
LINES_KNOWN = 100_000
START_SECONDS = 30.0
END_SECONDS = 15.0


class JobResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a job ended. `results` has what each rank said in Finished; `usage`: processor seconds of controller and hosts."""

    ok: bool
    reason: str
    generation: int
    committed: int
    results: dict[int, dict[str, Any]]
    faults: list[Fault]
    seconds: float
    usage: dict[str, Any]


def run_job(spec: JobSpec, on_event: Callable[[dict[str, Any]], None] | None = None) -> JobResult:
    """Runs the job to its end. Call it from a thread that lives as long as the job: the kernel ends the job with it.

    `on_event` gets every event in order. Raises UserError N9-GRD-003, before anything is started, while a job with this run id
    is at work here, and N9-GRD-001 when the ladder was exhausted; result.json is written all the same.
    """
    started = time.monotonic()
    for host in spec.hosts:
        refuse_if_owned(spec.memory_folder(host.name))
    folder = Path(spec.folder)
    folder.mkdir(parents=True, exist_ok=True)
    for used in _folders(spec):
        forget_earlier(used)
    spec.save()
    keys = forge(folder / "keys", [host.name for host in spec.hosts], standby=spec.standby is not None)
    events = _Events([used / "events.jsonl" for used in _folders(spec)], on_event)
    processes: dict[str, subprocess.Popen[bytes]] = {}
    with _terminated_as_interrupt():
        try:
            where: dict[str, str] = {}
            for name in (CONTROLLER, STANDBY) if spec.standby else (CONTROLLER,):
                processes[name] = _start_controller(spec, name, keys[name], where)
                where[name] = _where(spec, name, processes[name])
            for host in spec.hosts:
                processes[host.name] = _start_agent(spec, host, keys[host.name], where)
            _Driver(spec, processes, keys, where, events).follow()
        finally:
            _end(processes, spec)
            for host in spec.hosts:
                remove_folder(spec.memory_folder(host.name))
            events.read()
    result = _result(spec, time.monotonic() - started)
    if not result.ok:
        raise UserError("N9-GRD-001", f"the job stopped: {result.reason}", str(folder), f"n9 guard faults {folder}")
    return result


def forget_earlier(folder: Path) -> None:
    """A new start: what an earlier job in this folder wrote does not count any more."""
    for name in ("journal.jsonl", "controller.json", "standby.json", "result.json", "events.jsonl"):
        (folder / name).unlink(missing_ok=True)
    (folder / FILE).unlink(missing_ok=True)
    for name in ("faults", "usage"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _folders(spec: JobSpec) -> list[Path]:
    """Where the job's controllers keep journal, events, faults and result: one folder, unless the standby has its own."""
    own = [spec.standby.folder] if spec.standby and spec.standby.folder else []
    return [Path(folder) for folder in (spec.folder, *own)]


def _ended(spec: JobSpec) -> Path | None:
    """The folder in which a controller has written the job's result."""
    return next((folder for folder in _folders(spec) if read_json(folder / "result.json") is not None), None)


def _start_controller(spec: JobSpec, name: str, keys: Path, where: dict[str, str]) -> subprocess.Popen[bytes]:
    """`where`: ADDRESS:PORT of the controllers that have one already."""
    arguments = ["controller", "--job", str(Path(spec.folder) / "job.json"), "--keys", str(keys)]
    launch: tuple[str, ...] = ()
    if name == STANDBY and spec.standby is not None:
        arguments.append("--standby")
        launch = spec.standby.launch
    arguments += [part for other, address in where.items() if other != name for part in ("--other", address)]
    return _start(spec, name, list(launch), arguments)


def _start_agent(spec: JobSpec, host: HostSpec, keys: Path, where: dict[str, str]) -> subprocess.Popen[bytes]:
    arguments = ["agent", "--job", str(Path(spec.folder) / "job.json"), "--host", host.name, "--keys", str(keys)]
    arguments += [part for name, address in where.items() for part in (f"--{name}", address)]
    return _start(spec, host.name, list(host.launch), arguments)


def _start(spec: JobSpec, name: str, launch: list[str], arguments: list[str]) -> subprocess.Popen[bytes]:
    logs = Path(spec.folder) / "logs"
    logs.mkdir(exist_ok=True)
    with (logs / f"{name}.log").open("ab") as log:
        # A session of its own: what the terminal sends (Ctrl-C, hanging up) reaches the driver alone, and not rank by rank.
        return subprocess.Popen(
            [*launch, sys.executable, "-m", "ninthsky", "guard", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=die_with_parent(os.getpid(), signal.SIGTERM),
        )


def _presence(spec: JobSpec, name: str) -> dict[str, Any]:
    """What a controller wrote of itself; nothing where it has not yet."""
    return read_json(_folders(spec)[-1 if name == STANDBY else 0] / f"{name}.json") or {"pid": -1}


def _where(spec: JobSpec, name: str, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        state = _presence(spec, name)
        if state["pid"] == process.pid:
            return f"{'127.0.0.1' if state['address'] == '0.0.0.0' else state['address']}:{state['port']}"
        if process.poll() is not None:
            break
        time.sleep(0.02)
    log = str(Path(spec.folder) / "logs" / f"{name}.log")
    raise UserError("N9-GRD-001", f"the {name} did not start", log, "read its log")


class _Driver:
    """Sits by until a controller has written the result. A controller that was killed is started again."""

    def __init__(
        self,
        spec: JobSpec,
        processes: dict[str, subprocess.Popen[bytes]],
        keys: dict[str, Path],
        where: dict[str, str],
        events: _Events,
    ) -> None:
        self._spec, self._processes, self._keys, self._where, self._events = spec, processes, keys, where, events
        self._folder = Path(spec.folder)
        self._restarts = 0
        self._missed: dict[str, float] = {}  # controller -> when its end was seen

    def follow(self) -> None:
        while True:
            self._events.read()
            if _ended(self._spec):
                for name in self._where:
                    _wait(self._processes[name], END_SECONDS)
                return
            for name in self._where:
                if self._processes[name].poll() not in (None, OK):
                    self._again(name)
            if self._agents_ended():
                for name in self._where:
                    _wait(self._processes[name], END_SECONDS)
                if not _ended(self._spec):
                    what = "every agent ended before the job was done"
                    raise UserError("N9-GRD-001", what, str(self._folder / "logs"), "read the agents' logs")
                return
            time.sleep(POLL_SECONDS)

    def _again(self, name: str) -> None:
        """Starts a controller again; where the other one is about to take over, after it has."""
        other = next((known for known in self._where if known != name), None)
        since = self._missed.setdefault(name, time.monotonic())
        if other is not None and self._processes[other].poll() is None:
            state = _presence(self._spec, other)
            leads = state["pid"] == self._processes[other].pid and state["leads"]
            if not leads and time.monotonic() - since < TAKE_OVER_SECONDS:
                return
        del self._missed[name]
        self._restarts += 1
        if self._restarts > CONTROLLER_RESTARTS:
            log = str(self._folder / "logs" / f"{name}.log")
            raise UserError("N9-GRD-001", f"controllers ended {self._restarts} times", log, "read its log")
        self._processes[name] = _start_controller(self._spec, name, self._keys[name], self._where)

    def _agents_ended(self) -> bool:
        journal = self._folder / "journal.jsonl"
        begun = journal.exists() and journal.stat().st_size > 0
        agents = {name: process for name, process in self._processes.items() if name not in self._where}
        ended = [name for name, process in agents.items() if process.poll() is not None]
        if ended and not begun:
            log = str(self._folder / "logs" / f"{ended[0]}.log")
            raise UserError("N9-GRD-001", f"the agent of {ended[0]} ended before the job began", log, "read its log")
        return len(ended) == len(agents)


def _end(processes: dict[str, subprocess.Popen[bytes]], spec: JobSpec) -> None:
    controllers = [name for name in (STANDBY, CONTROLLER) if name in processes]
    if _ended(spec) is None:
        # Before the job is done: the watchers first, else they would take the ranks that end now for faults.
        for name in controllers:
            processes[name].terminate()
        for name in controllers:
            _wait(processes[name], END_SECONDS)
    for name in sorted(processes, key=lambda name: name in controllers):
        process = processes[name]
        # After a good end agents have been told to stop; a terminated agent ends its ranks and removes its folder.
        if not _wait(process, 2.0 if name not in controllers else 0.5):
            process.terminate()
    for process in processes.values():
        if not _wait(process, END_SECONDS):
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _result(spec: JobSpec, seconds: float) -> JobResult:
    folder = _ended(spec) or Path(spec.folder)
    written = read_json(folder / "result.json") or {"ok": False, "reason": "no result was written"}
    usage = {path.stem: read_json(path) for path in sorted((Path(spec.folder) / "usage").glob("*.json"))}
    return JobResult(
        ok=written["ok"],
        reason=written["reason"],
        generation=written.get("generation", 0),
        committed=written.get("committed", -1),
        results={int(rank): result for rank, result in written.get("results", {}).items()},
        faults=read_faults(folder / "faults"),
        seconds=seconds,
        usage={"controller": written.get("controller"), **usage},
    )


@contextmanager
def _terminated_as_interrupt() -> Iterator[None]:
    """SIGTERM ends the job as Ctrl-C does: cleanly. Only the main thread can have it so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Events:
    """Hands whole new lines of the job's event logs on. A standby's log is a copy until it leads: each line counts once."""

    def __init__(self, paths: list[Path], on_event: Callable[[dict[str, Any]], None] | None) -> None:
        self._on_event = on_event
        self._offsets = dict.fromkeys(paths, (0, 0))  # of each file: its inode, and how far it was read
        self._known: dict[bytes, None] = {}  # in the order in which they came

    def read(self) -> None:
        if self._on_event is None:
            return
        for path, (known, offset) in self._offsets.items():
            if not path.exists():
                continue
            with path.open("rb") as file:
                inode = os.fstat(file.fileno()).st_ino
                if inode != known:
                    offset = 0  # who leads no more follows, and copies anew
                file.seek(offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    offset += len(line)
                    self._hand_on(line)
            self._offsets[path] = (inode, offset)

    def _hand_on(self, line: bytes) -> None:
        if len(self._offsets) > 1:
            if line in self._known:
                return
            self._known[line] = None
            if len(self._known) > LINES_KNOWN:
                del self._known[next(iter(self._known))]
        assert self._on_event is not None
        self._on_event(json.loads(line))
