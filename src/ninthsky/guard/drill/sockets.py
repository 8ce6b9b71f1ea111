"""The drill at fleet size over the real protocol, in real time: the controller's own process, encryption, its page.

What the controller costs is the processor time of its process, by /proc: sockets, encryption, judges, regroups, its files.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ninthsky.errors import UserError
from ninthsky.guard.agent.spawner import die_with_parent, watch_first
from ninthsky.guard.drill.episodes import TICK, Drill
from ninthsky.guard.drill.scenario import Scenario
from ninthsky.guard.drill.wired import WiredAgents, make_keys
from ninthsky.guard.keys import CONTROLLER

START_SECONDS = 120.0
END_SECONDS = 20.0
STAGES = {"generation": "collect", "formed": "form", "joined": "run", "job.failed": "failed", "job.done": "done"}


class SocketDrill(Drill):
    """Steps of one second, so that a hundred faults fit in twenty minutes; a job goes on until it ends or spares run out."""

    faults_per_job = 1_000
    pace = 0.5

    def __init__(self, ranks: int, scenario: Scenario, seed: int, on_told: Callable[[str], None] = lambda _: None) -> None:
        super().__init__(ranks, scenario, seed, on_told)
        self.now = time.monotonic()
        self.own_spent = 0.0  # processor seconds of the agents' process
        self.page_bytes = self.page_largest = 0
        self.page_seconds = 0.0
        self.late = 0.0  # how far the agents' process fell behind the clock, at most
        self.dropped = 0
        self.messages = 0

    def _start(self, folder: Path) -> None:
        self.fleet, spec = self._new_fleet(), self.spec(folder)
        self.agents = self._wired = WiredAgents(self.fleet, spec)
        self._priority = os.getpriority(os.PRIO_PROCESS, 0)
        watch_first()  # as agents do
        keys, server, pairs = make_keys(folder / "keys", [host.name for host in spec.hosts])
        job = spec.save()
        log = folder / "controller.log"
        self._state, self._why = "gather", ""
        self._controller = _spawn(["controller", "--job", str(job), "--keys", str(keys)], log)
        self._events = (folder / "events.jsonl", 0, b"")
        self._wired.connect(server, pairs, spec.watch.bind, _port_of(folder, self._controller, log))
        self._page = PageReader(folder)
        self._due = self._began = time.monotonic()
        self._own_before = time.process_time()
        self._until(lambda: self.fleet.running > 0, START_SECONDS)
        if not self.fleet.running:
            self._end()
            raise UserError(
                "N9-GRD-001", f"the simulated job did not start ({self._state}) {self._why}", "n9 guard drill --sockets"
            )

    def _end(self) -> None:
        self.simulated += time.monotonic() - self._began
        self.own_spent += time.process_time() - self._own_before
        self.spent += _processor_seconds(self._controller.pid)
        self.memory_mb = max(self.memory_mb, _peak_mb(self._controller.pid))
        self.bytes += self._wired.bytes
        self.messages += self._wired.messages
        self.dropped += self._wired.dropped
        self._page.close()
        self.page_bytes += self._page.bytes
        self.page_seconds += self._page.seconds
        self.page_largest = max(self.page_largest, self._page.largest)
        self._wired.close()
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, self._priority)
        self._controller.terminate()
        try:
            self._controller.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._controller.kill()
            self._controller.wait()

    def _tick(self) -> None:
        self._due += TICK
        self._wired.wait(self._due)
        self.now = time.monotonic()
        self.late = max(self.late, self.now - self._due)
        self._due = max(self._due, self.now - TICK)
        self._wired.advance(self.now)
        self._read_events()
        if self._controller.poll() is not None and self._state not in STAGES.values():
            self._state, self._why = "failed", "its controller ended"

    def _read_events(self) -> None:
        path, offset, rest = self._events
        if not path.exists() or path.stat().st_size == offset:
            return
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
        *lines, rest = (rest + data).split(b"\n")
        self._events = (path, offset + len(data), rest)
        for line in lines:
            event: dict[str, Any] = json.loads(line)
            kind = event.pop("kind")
            self._state = STAGES.get(kind, self._state)
            self._why = event.get("reason", self._why)
            at, self.now = self.now, time.monotonic() - (time.time() - event["time"])
            self._event(kind, **event)  # at the moment when it was told, not when it was read
            self.now = at

    def _stage(self) -> str:
        return self._state

    def _lost(self) -> set[int]:
        return {agent.number for agent in self.agents.agents if agent.refused}

    def _stop(self, reason: str) -> None:
        self._state, self._why = "failed", reason

    def figures(self) -> dict[str, Any]:
        """What the sheet says beside: of the wire, the page, and the agents' process, which shares this machine."""
        seconds = max(self.simulated, 1e-9)
        return {
            "sockets": True,
            "encrypted": True,
            "step_seconds": 2.0 * self.pace,
            "messages_per_s": round(self.messages / seconds),
            "mb_per_s": round(self.bytes / seconds / 1e6, 2),
            "messages_dropped": self.dropped,
            "agents_core": round(self.own_spent / seconds, 4),
            "agents_late_s": round(self.late, 2),
            "page_bytes_per_s": round(self.page_bytes / max(self.page_seconds, 1e-9)),
            "page_largest_second": self.page_largest,
        }


class PageReader(threading.Thread):
    """`n9 guard serve` on the job's folder, and one who looks at the page: how many bytes come."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.bytes = self.largest = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ninthsky", "guard", "serve", str(folder), "--port", "0", "--anyone-may-look", "--json"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=(folder / "page.log").open("ab"),
            preexec_fn=die_with_parent(os.getpid(), signal.SIGTERM),
        )  # fmt: skip
        self._began: float | None = None
        self._ended = 0.0
        self.start()

    @property
    def seconds(self) -> float:
        """How long it has looked, from the first difference on."""
        return (self._ended or time.monotonic()) - self._began if self._began is not None else 0.0

    def run(self) -> None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            return
        second, of_second = 0, 0
        try:
            with urllib.request.urlopen(json.loads(line)["url"] + "/events") as answer:
                first = True
                for part in answer:
                    if first and part != b"\n":
                        continue  # the whole picture comes once; what is asked about is the differences
                    if first:
                        first, self._began = False, time.monotonic()
                        continue
                    self.bytes += len(part)
                    now = int(time.monotonic())
                    of_second = of_second + len(part) if now == second else len(part)
                    second = now
                    self.largest = max(self.largest, of_second)
        except (OSError, ValueError):
            self._ended = time.monotonic()  # the page's process was ended

    def close(self) -> None:
        self._ended = self._ended or time.monotonic()
        self._process.terminate()
        self._process.wait()
        self.join(5.0)


def _spawn(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "ninthsky", "guard", *arguments],
            stdin=subprocess.DEVNULL, stdout=file, stderr=file, preexec_fn=die_with_parent(os.getpid(), signal.SIGTERM),
        )  # fmt: skip


def _port_of(folder: Path, controller: subprocess.Popen[bytes], log: Path) -> int:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and controller.poll() is None:
        try:
            return int(json.loads((folder / "controller.json").read_bytes())["port"])
        except (OSError, ValueError):
            time.sleep(0.02)
    raise UserError(
        "N9-GRD-001", f"the controller did not start: {log.read_text()[-500:]}", CONTROLLER, "n9 guard drill --sockets"
    )


def _processor_seconds(pid: int) -> float:
    """User and system time of a process and all its threads so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return resource.getpagesize() * int(Path(f"/proc/{pid}/statm").read_text().split()[1]) / 2**20
