"""A rank without a model, for drills and tests: the whole protocol of architecture.md, a few numbers of state, no torch.

Its collectives go through a hub in the rank that serves the store: every rank sends its bytes, every rank gets all of them.
So a frozen rank blocks the others, and a dead one breaks them, as in a real job. Settings come in N9_SIMULATED (JSON).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import sys
import threading
import time
from pathlib import Path

import msgspec
import numpy as np
import xxhash

from ninthsky.guard.probe import messages as m
from ninthsky.guard.probe.line import Interrupted, Line
from ninthsky.guard.probe.record import NONFINITE, Phase, RecordWriter, group_id

WIDTH = 256
_LENGTH = struct.Struct("<I")


class Plan(msgspec.Struct, frozen=True):
    """What the simulated job does. `inject` entries: kind, rank, step, and for nan `sticks` to "once", "data" or "card".

    Each injection happens once in the job: the file `marks`/N is its mark.
    """

    steps: int = 40
    work_ms: float = 20.0
    seed: int = 7
    marks: str = ""
    checkpoint_every: int = 0
    checkpoints: str = ""
    inject: list[dict[str, str | int | float]] = []


class Hub(threading.Thread):
    """Gathers one frame of every rank, answers all with all, for ever."""

    def __init__(self, bind: str, world: int) -> None:
        super().__init__(daemon=True)
        self.listener = socket.create_server((bind, 0))
        self.port = self.listener.getsockname()[1]
        self.world = world
        self.connections: dict[int, socket.socket] = {}

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while len(self.connections) < self.world:
                connection, _ = self.listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                head = _receive(connection, 4)
                self.connections[_LENGTH.unpack(head)[0]] = connection
            while True:
                answer = b"".join(self._frame(rank) for rank in range(self.world))
                for rank in range(self.world):
                    self.connections[rank].sendall(answer)
        self.let_go()

    def _frame(self, rank: int) -> bytes:
        head = _receive(self.connections[rank], 4)
        return head + _receive(self.connections[rank], _LENGTH.unpack(head)[0])

    def let_go(self) -> None:
        for connection in (self.listener, *self.connections.values()):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


def _receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionResetError("connection closed by peer")
        data += part
    return data


class Rank:
    """One process: waits to be assigned, trains, and does as it is told."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.shards = Path(os.environ["N9_SHARDS"])
        self.record = RecordWriter(Path(os.environ["N9_RECORD"]))
        threading.Thread(target=self._beat, daemon=True).start()
        self.hub: Hub | None = None
        self.connection: socket.socket | None = None
        self.line = Line(os.environ["N9_AGENT"], self._let_go)
        self.line.send(m.Hello(int(os.environ["N9_SLOT"]), os.getpid()))
        self.state = np.zeros(WIDTH)
        self.step = -1  # last finished
        self.held: set[int] = set()
        self.slow = 1.0
        self.world = 0

    def serve(self) -> None:
        self.record.update(phase=Phase.WAIT)
        self.line.send(m.Ready())
        while True:
            try:
                assign = self.line.wait_for(m.Assign)
                self._join(assign)
                self._train(assign)
                self.line.wait_for(m.Stop)
                return
            except Interrupted as interrupted:
                if isinstance(interrupted.message, m.Stop):
                    return
                self._broke(f"aborted: {interrupted.message.reason}")
            except OSError as error:
                self._broke(f"{type(error).__name__}: {error}")

    def _broke(self, error: str) -> None:
        self._let_go(None)
        self.line.send(m.Broken(self.line.generation, self.step, error))

    def _let_go(self, abort: m.Abort | None) -> None:
        hub, connection = self.hub, self.connection
        if hub is not None:
            hub.let_go()
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _join(self, assign: m.Assign) -> None:
        self.line.begin(assign.generation)
        self.world = assign.world
        self.hub = self.connection = None
        self.record.clear_groups()
        self.record.update(generation=assign.generation, rank=assign.rank, phase=Phase.JOIN, attempt=0)
        if assign.serve_store:
            self.hub = Hub(assign.bind, assign.world)
            self.hub.start()
            self.line.send(m.StoreServing(assign.generation, self.hub.port))
        where = self.line.wait_for(m.Rendezvous, lambda r: r.generation == assign.generation)
        self.connection = socket.create_connection((where.address, where.port), timeout=None)
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection.sendall(_LENGTH.pack(assign.rank))
        self.state, self.step = np.zeros(WIDTH), assign.resume_step
        if assign.resume_step >= 0:
            self.state = np.frombuffer((self.shards / f"shard-{assign.rank}-{assign.resume_step}").read_bytes()).copy()
        self.held = {assign.resume_step}
        self._collective("world", b"joined")
        self.line.send(m.Joined(assign.generation, assign.rank, self.step + 1))

    def _train(self, assign: m.Assign) -> None:
        while self.step + 1 < self.plan.steps:
            step, attempt, shift, action = self.step + 1, 0, 0, ""
            while True:
                total, bad = self._attempt(assign, step, attempt, shift)
                if not bad and not shift:
                    break
                self.record.update(phase=Phase.VERDICT)
                self.line.send(m.Bad(assign.generation, step, attempt, bad))
                action = self.line.wait_for(m.Decide, lambda d, s=step, a=attempt: (d.step, d.attempt) == (s, a)).action  # type: ignore[misc]
                if action == "skip":
                    total = np.zeros(WIDTH)
                    break
                attempt, shift = attempt + 1, int(action == "rotate")
            self._update(assign, step, total)
        while self.step not in self.held:
            self.held.add(self.line.wait_for(m.ShardHeld, lambda h: h.step == self.step).step)
        self._collective("world", b"done")
        self.record.update(phase=Phase.DONE)
        self.line.send(
            m.Finished(
                assign.generation,
                assign.rank,
                {"digest": xxhash.xxh3_64_hexdigest(self.state.tobytes()), "steps": self.step + 1},
            )
        )

    def _attempt(self, assign: m.Assign, step: int, attempt: int, shift: int) -> tuple[np.ndarray, list[int]]:
        """Local work, exchange, gate: the sum of all ranks' gradients, and the ranks where they are not finite."""
        self.record.update(step=step, attempt=attempt, phase=Phase.LOCAL)
        wall, cpu = time.perf_counter(), time.thread_time()
        sample = (assign.rank + shift) % assign.world
        finite = self._inject(assign, step, attempt, sample)
        gradient = np.random.default_rng((self.plan.seed, sample, step)).standard_normal(WIDTH)
        while time.thread_time() - cpu < self.plan.work_ms / 4_000 * self.slow:
            pass
        time.sleep(self.plan.work_ms * 0.75 / 1_000)
        local_wall, local_cpu = (time.perf_counter() - wall) * 1e3, (time.thread_time() - cpu) * 1e3
        self.record.update(local_wall=local_wall, local_cpu=local_cpu, flags=0 if finite else NONFINITE)
        parts = self._collective("world", gradient.tobytes())
        while step - 1 not in self.held:
            self.held.add(self.line.wait_for(m.ShardHeld, lambda h: h.step == step - 1).step)
        self.record.update(phase=Phase.GATE)
        flags = self._collective("gate", bytes([finite]))
        if step > 0 and attempt == 0:
            self.line.send(m.Committed(assign.generation, step - 1))
        return np.sum([np.frombuffer(part) for part in parts], axis=0), [
            rank for rank, flag in enumerate(flags) if flag == b"\0"
        ]

    def _update(self, assign: m.Assign, step: int, total: np.ndarray) -> None:
        self.record.update(phase=Phase.UPDATE)
        self.state = 0.9 * self.state + total * (assign.rank + 1)
        data = self.state.tobytes()
        name = f"shard-{assign.rank}-{step}"
        draft = self.shards / f".{name}"
        draft.write_bytes(data)
        with self.line.writing():
            draft.replace(self.shards / name)
        (self.shards / f"shard-{assign.rank}-{step - 2}").unlink(missing_ok=True)
        self.step = step
        self.held = {old for old in self.held if old >= step - 1}
        self.line.send(m.Shard(assign.generation, assign.rank, step, len(data), xxhash.xxh3_64_hexdigest(data)))
        if self.plan.checkpoint_every and step % self.plan.checkpoint_every == 0:
            self.line.send(m.MayCommit(assign.generation, step))
            if self.line.wait_for(m.Permit, lambda p: p.step == step).allowed:
                with self.line.writing():
                    (Path(self.plan.checkpoints) / f"rank-{assign.rank}-step-{step}-pid-{os.getpid()}").touch()

    def _collective(self, group: str, data: bytes) -> list[bytes]:
        assert self.connection is not None
        number = self.record.enqueue(group_id(group), len(data))
        self.connection.sendall(_LENGTH.pack(len(data)) + data)
        answers = []
        for _ in range(self.world):
            (size,) = _LENGTH.unpack(_receive(self.connection, 4))
            answers.append(_receive(self.connection, size))
        self.record.complete(group_id(group), number)
        return answers

    def _inject(self, assign: m.Assign, step: int, attempt: int, sample: int) -> bool:
        """Does what the plan has for this rank, step and attempt. False: the gradient shall not be finite."""
        finite = True
        for number, fault in enumerate(self.plan.inject):
            kind, sticks = fault["kind"], fault.get("sticks", "once")
            if kind == "nan" and sticks == "data":
                finite &= not (sample == fault["rank"] and step == fault["step"])
            elif kind == "nan" and sticks == "card":
                card = f"{os.environ['N9_HOST']}/{os.environ['N9_SLOT']}"
                finite &= not (card == fault["card"] and step == fault["step"])
            elif (assign.rank, step, attempt) == (fault["rank"], fault["step"], fault.get("attempt", 0)) and self._mark(number):
                if kind == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                elif kind == "freeze":
                    os.kill(os.getpid(), signal.SIGSTOP)
                elif kind == "stuck":
                    threading.Event().wait()
                elif kind == "error":
                    raise RuntimeError("injected error of the program")
                elif kind == "slow":
                    self.slow = float(fault.get("factor", 3.0))
                else:
                    finite = False
        return finite

    def _mark(self, number: int) -> bool:
        try:
            with (Path(self.plan.marks) / str(number)).open("x") as mark:
                mark.write(f"{time.time()}")
        except FileExistsError:
            return False
        return True

    def _beat(self) -> None:
        while True:
            self.record.heartbeat()
            time.sleep(0.1)


def main() -> None:
    """Entry point of the process that an agent starts."""
    plan = msgspec.convert(json.loads(os.environ.get("N9_SIMULATED", "{}")), Plan)
    try:
        Rank(plan).serve()
    except BrokenPipeError:
        sys.exit(4)


if __name__ == "__main__":
    main()
