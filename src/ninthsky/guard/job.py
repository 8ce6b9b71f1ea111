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

from ninthsky.errors import UserError
from ninthsky.guard.agent.process import refuse_if_owned
from ninthsky.guard.agent.spawner import die_with_parent
from ninthsky.guard.agent.store import remove_folder
from ninthsky.guard.faults import Fault, read_faults
from ninthsky.guard.keys import CONTROLLER, forge
from ninthsky.guard.picture import FILE
from ninthsky.guard.spec import HostSpec, Injected, JobSpec, Watch
from ninthsky.run.folder import read_json

__all__ = ["HostSpec", "Injected", "JobResult", "JobSpec", "Watch", "run_job"]

POLL_SECONDS = 0.1
CONTROLLER_RESTARTS = 5
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
    _forget_earlier(folder)
    spec.save()
    keys = forge(folder / "keys", [host.name for host in spec.hosts])
    events = _Tail(folder / "events.jsonl", on_event)
    processes: dict[str, subprocess.Popen[bytes]] = {}
    with _terminated_as_interrupt():
        try:
            processes[CONTROLLER] = _start_controller(spec, keys[CONTROLLER])
            port = _port(folder, processes[CONTROLLER])
            for host in spec.hosts:
                processes[host.name] = _start_agent(spec, host, keys[host.name], port)
            _follow(spec, processes, keys[CONTROLLER], events)
        finally:
            _end(processes, folder)
            for host in spec.hosts:
                remove_folder(spec.memory_folder(host.name))
            events.read()
    result = _result(folder, time.monotonic() - started)
    if not result.ok:
        raise UserError("N9-GRD-001", f"the job stopped: {result.reason}", str(folder), f"n9 guard faults {folder}")
    return result


def _forget_earlier(folder: Path) -> None:
    """A new start: what an earlier job in this folder wrote does not count any more."""
    for name in ("journal.jsonl", "controller.json", "result.json", "events.jsonl"):
        (folder / name).unlink(missing_ok=True)
    (folder / FILE).unlink(missing_ok=True)
    for name in ("faults", "usage"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _start_controller(spec: JobSpec, keys: Path) -> subprocess.Popen[bytes]:
    return _start(spec, "controller", [], ["controller", "--job", str(Path(spec.folder) / "job.json"), "--keys", str(keys)])


def _start_agent(spec: JobSpec, host: HostSpec, keys: Path, port: int) -> subprocess.Popen[bytes]:
    address = "127.0.0.1" if spec.watch.bind == "0.0.0.0" else spec.watch.bind
    return _start(
        spec,
        host.name,
        list(host.launch),
        [
            "agent",
            "--job",
            str(Path(spec.folder) / "job.json"),
            "--host",
            host.name,
            "--keys",
            str(keys),
            "--controller",
            f"{address}:{port}",
        ],
    )


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


def _port(folder: Path, controller: subprocess.Popen[bytes]) -> int:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        state = read_json(folder / "controller.json")
        if state is not None and state["pid"] == controller.pid:
            return int(state["port"])
        if controller.poll() is not None:
            break
        time.sleep(0.02)
    raise UserError("N9-GRD-001", "the controller did not start", str(folder / "logs" / "controller.log"), "read its log")


def _follow(spec: JobSpec, processes: dict[str, subprocess.Popen[bytes]], keys: Path, events: _Tail) -> None:
    """Until the controller has written the result. A controller that was killed is started again."""
    folder = Path(spec.folder)
    restarts = 0
    while True:
        events.read()
        if processes[CONTROLLER].poll() is not None:
            if read_json(folder / "result.json") is not None:
                return
            restarts += 1
            if restarts > CONTROLLER_RESTARTS:
                raise UserError(
                    "N9-GRD-001",
                    f"the controller ended {restarts} times",
                    str(folder / "logs" / "controller.log"),
                    "read its log",
                )
            processes[CONTROLLER] = _start_controller(spec, keys)
        begun = (folder / "journal.jsonl").exists() and (folder / "journal.jsonl").stat().st_size > 0
        for name, process in processes.items():
            if name != CONTROLLER and not begun and process.poll() is not None:
                log = str(folder / "logs" / f"{name}.log")
                raise UserError("N9-GRD-001", f"the agent of {name} ended before the job began", log, "read its log")
        if all(process.poll() is not None for name, process in processes.items() if name != CONTROLLER):
            _wait(processes[CONTROLLER], END_SECONDS)
            if read_json(folder / "result.json") is None:
                raise UserError(
                    "N9-GRD-001", "every agent ended before the job was done", str(folder / "logs"), "read the agents' logs"
                )
            return
        time.sleep(POLL_SECONDS)


def _end(processes: dict[str, subprocess.Popen[bytes]], folder: Path) -> None:
    controller = processes.get(CONTROLLER)
    if controller is not None and read_json(folder / "result.json") is None:
        # Before the job is done: the watcher first, else it would take the ranks that end now for faults.
        controller.terminate()
        _wait(controller, END_SECONDS)
    for name in sorted(processes, key=lambda name: name == CONTROLLER):
        process = processes[name]
        # After a good end agents have been told to stop; a terminated agent ends its ranks and removes its folder.
        if not _wait(process, 2.0 if name != CONTROLLER else 0.5):
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


def _result(folder: Path, seconds: float) -> JobResult:
    written = read_json(folder / "result.json") or {"ok": False, "reason": "no result was written"}
    usage = {path.stem: read_json(path) for path in sorted((folder / "usage").glob("*.json"))}
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


class _Tail:
    """Hands whole new lines of a JSONL file on."""

    def __init__(self, path: Path, on_event: Callable[[dict[str, Any]], None] | None) -> None:
        self._path, self._on_event = path, on_event
        self._offset = path.stat().st_size if path.exists() else 0

    def read(self) -> None:
        if self._on_event is None or not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                self._on_event(json.loads(line))
