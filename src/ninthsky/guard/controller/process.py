"""The controller's process: sockets and clock around a Conductor. Killed and started again, it goes on from its journal."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq.asyncio

from ninthsky.errors import FAILED, OK
from ninthsky.guard import protocol as p
from ninthsky.guard.agent.spawner import watch_first
from ninthsky.guard.controller.conductor import Conductor
from ninthsky.guard.controller.outward import Outward
from ninthsky.guard.keys import load_keys
from ninthsky.guard.spec import JobSpec, load_spec
from ninthsky.guard.wire import Listener
from ninthsky.run.folder import append_line, read_json, write_json

TICK_SECONDS = 0.1
RESEND_SECONDS = 0.5
GOODBYE_SECONDS = 0.3  # for the last commands to leave


class Outbox:
    """Commands to one host: numbered, kept until a report acknowledges them, sent again when that takes too long."""

    def __init__(self, controller: str) -> None:
        self._controller = controller
        self._number = 0
        self._waiting: deque[tuple[float, p.Numbered]] = deque()

    def pack(self, command: p.Command, now: float) -> p.Numbered:
        if isinstance(command, (p.WhoAreYou, p.Refused)):
            return p.Numbered(self._controller, 0, command)
        self._number += 1
        numbered = p.Numbered(self._controller, self._number, command)
        self._waiting.append((now, numbered))
        return numbered

    def acknowledge(self, controller: str, number: int, now: float) -> list[p.Numbered]:
        """What has to be sent again. An agent that has not heard of this controller yet acknowledges another's numbers."""
        while controller == self._controller and self._waiting and self._waiting[0][1].number <= number:
            self._waiting.popleft()
        if not self._waiting or now - self._waiting[0][0] < RESEND_SECONDS:
            return []
        self._waiting = deque((now, numbered) for _, numbered in self._waiting)
        return [numbered for _, numbered in self._waiting]


class Controller:
    """Serves until the job is over; `run` returns an exit status."""

    def __init__(self, spec: JobSpec, keys_path: Path, port: int) -> None:
        self.spec = spec
        self.folder = Path(spec.folder)
        self._context = zmq.asyncio.Context()
        self.listener: Listener[p.ToController] = Listener(
            self._context, load_keys(keys_path), p.Register | p.Report | p.Event, spec.watch.bind, port
        )
        self._id = f"{os.getpid()}-{time.time_ns()}"
        self._outboxes = {host.name: Outbox(self._id) for host in spec.hosts}
        self._started = time.monotonic()
        self._refused = self.listener.refused.copy()
        self._heard: Callable[[dict[str, Any]], None] | None = None  # an event of the start itself reaches the files only
        self.conductor = Conductor(spec, self._send, self._event)
        self.state = self.conductor.state
        self._outward = Outward(self.state, self.conductor.approve)
        self._heard = self._outward.heard
        self._stopping = ""

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        write_json(
            self.folder / "controller.json", {"address": self.spec.watch.bind, "port": self.listener.port, "pid": os.getpid()}
        )
        receiving = asyncio.ensure_future(self._receive())
        parent = os.getppid()
        try:
            while not self.state.over:
                self.conductor.tick()
                self._outward.tick()
                if self._refused != self.listener.refused:
                    self._refused = self.listener.refused.copy()
                    self._event("refused", host="controller", counts=dict(self._refused))
                if os.getppid() != parent and not self._stopping:
                    self._stop()
                done, _ = await asyncio.wait({receiving}, timeout=TICK_SECONDS)
                if done:
                    receiving.result()
            await asyncio.sleep(GOODBYE_SECONDS)
            self._outward.close()
        finally:
            receiving.cancel()
            self.listener.close()
        self._write_result()
        self._context.destroy(linger=0)
        return OK if self.state.stage == "done" else FAILED

    async def _receive(self) -> None:
        while True:
            host, message = await self.listener.receive()
            if host not in self._outboxes:
                self.listener.refused["not a host of this job"] += 1
                continue
            if isinstance(message, p.Report):
                for numbered in self._outboxes[host].acknowledge(message.controller, message.commands, time.monotonic()):
                    self.listener.send(host, numbered)
            self.conductor.handle(host, message)

    def _send(self, host: str, command: p.Command) -> None:
        self.listener.send(host, self._outboxes[host].pack(command, time.monotonic()))

    def _event(self, kind: str, **fields: Any) -> None:
        record = {"time": time.time(), "kind": kind, "job": self.spec.run_id, **fields}
        append_line(self.folder / "events.jsonl", record)
        if self.spec.events:
            append_line(Path(self.spec.events), record)
        if self._heard is not None:
            self._heard(record)

    def _stop(self) -> None:
        self._stopping = "told to stop"
        self.conductor.stop("stopped by a person or by the end of the process that started it")

    def _write_result(self) -> None:
        state = self.state
        usage = resource.getrusage(resource.RUSAGE_SELF)
        write_json(
            self.folder / "result.json",
            {
                "ok": state.stage == "done",
                "reason": state.reason if state.stage == "failed" else "",
                "generation": state.generation,
                "committed": state.committed,
                "results": {str(rank): result for rank, result in sorted(state.results.items())},
                "faults": [fault.id for fault in state.book.faults],
                "refused": dict(self.listener.refused),
                "controller": {
                    "seconds": round(time.monotonic() - self._started, 3),
                    "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 3),
                    "mb": round(usage.ru_maxrss / 1024, 1),
                },
            },
        )


def main(job: Path, keys: Path, port: int) -> int:
    """`n9 guard controller`. Port 0: the port of an earlier start, read from the job's folder, or any free one."""

    watch_first()

    async def work() -> int:
        spec = load_spec(job)
        before = read_json(Path(spec.folder) / "controller.json")
        return await Controller(spec, keys, port or (before["port"] if before else 0)).run()

    return asyncio.run(work())
