"""A rank without a model, for drills and tests: the whole protocol of architecture.md, a few numbers of state, no torch.

The job's state is one vector, cut over the ranks, and a step adds what was drawn for each of SAMPLES samples, in their order:
so a job that went on with fewer ranks ends with the same bits. Its collectives go through a hub in the rank that serves the
store: every rank sends its bytes, every rank gets all of them. So a frozen rank blocks the others, and a dead one breaks them,
as in a real job. Settings come in N9_SIMULATED (JSON).
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
from ninthsky.guard.probe.record import BEAT_SECONDS, NONFINITE, Phase, RecordWriter, group_id

WIDTH = 240  # numbers of state, over all ranks
SAMPLES = 12  # of a step, over all ranks
_LENGTH = struct.Struct("<I")


class Plan(msgspec.Struct, frozen=True):
    """What the simulated job does. `inject` entries: kind, rank, step, and for nan `sticks` to "once", "data" or "card".

    Each injection happens once in the job: the file `marks`/N is its mark.
    """

    steps: int = 40
    work_ms: float = 20.0
    seed: int = 7
    marks: str = ""
    replicate_every: int = 1  # steps between two copies of the state, as [train] replicate_every
    checkpoint_every: int = 0
    checkpoints: str = ""
    inject: list[dict[str, str | int | float]] = []
    orders: str = ""  # folder where rank-N says what rank N does to itself at its next step


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


def share(count: int, rank: int, ranks: int) -> tuple[int, int]:
    """(start, end) of a rank's part of so many things in a row."""
    return count * rank // ranks, count * (rank + 1) // ranks


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
        self.state = np.zeros(0)  # this rank's part
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
        self.step = assign.resume_step
        self.state = self._restored(assign)
        self.held = {assign.resume_step}
        self._collective("world", b"joined")
        self.line.send(m.Joined(assign.generation, assign.rank, self.step + 1))

    def _restored(self, assign: m.Assign) -> np.ndarray:
        """This rank's part of the state, out of its own shard or of those that other numbers of ranks have left."""
        first, end = share(WIDTH, assign.rank, assign.world)
        if assign.resume_step < 0:
            return np.zeros(end - first)
        if not assign.state_world:
            return self._shard(assign.rank, assign.resume_step)
        whole = np.zeros(WIDTH)
        for rank in range(assign.state_world):
            start, stop = share(WIDTH, rank, assign.state_world)
            if start < end and first < stop:
                self.line.send(m.Wanted(assign.generation, rank, assign.resume_step))
                self.line.wait_for(m.Brought, lambda b, r=rank: b.rank == r)  # type: ignore[misc]
                whole[start:stop] = self._shard(rank, assign.resume_step)
        return whole[first:end].copy()

    def _shard(self, rank: int, step: int) -> np.ndarray:
        return np.frombuffer((self.shards / f"shard-{rank}-{step}").read_bytes()).copy()

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
        whole = b"".join(self._collective("world", self.state.tobytes()))
        self.record.update(phase=Phase.DONE)
        self.line.send(
            m.Finished(
                assign.generation,
                assign.rank,
                {"digest": xxhash.xxh3_64_hexdigest(whole), "steps": self.step + 1},
            )
        )

    def _attempt(self, assign: m.Assign, step: int, attempt: int, shift: int) -> tuple[np.ndarray, list[int]]:
        """Local work, exchange, gate: the sum of all ranks' gradients, and the ranks where they are not finite."""
        self.record.update(step=step, attempt=attempt, phase=Phase.DATA)
        loading = time.perf_counter()
        self._load(assign.rank, step)
        self.record.update(phase=Phase.LOCAL, data=(time.perf_counter() - loading) * 1e3)
        wall, cpu = time.perf_counter(), time.thread_time()
        place = (assign.rank + shift) % assign.world
        finite = self._inject(assign, step, attempt, place)
        gradients = [
            np.random.default_rng((self.plan.seed, sample, step)).standard_normal(WIDTH)
            for sample in range(*share(SAMPLES, place, assign.world))
        ]
        while time.thread_time() - cpu < self.plan.work_ms / 4_000 * self.slow:
            pass
        time.sleep(self.plan.work_ms * 0.75 / 1_000)
        local_wall, local_cpu = (time.perf_counter() - wall) * 1e3, (time.thread_time() - cpu) * 1e3
        self.record.update(local_wall=local_wall, local_cpu=local_cpu, flags=0 if finite else NONFINITE)
        parts = self._collective("world", b"".join(gradient.tobytes() for gradient in gradients))
        # The newest copy that is due: of the step before, or of the step that this generation went on from.
        copied = max(step // self.plan.replicate_every * self.plan.replicate_every - 1, assign.resume_step)
        while copied not in self.held:
            self.held.add(self.line.wait_for(m.ShardHeld, lambda h: h.step == copied).step)
        self.record.update(phase=Phase.GATE)
        flags = self._collective("gate", bytes([finite]))
        if copied >= 0 and attempt == 0:
            self.line.send(m.Committed(assign.generation, copied))
        total = np.frombuffer(b"".join(parts)).reshape(SAMPLES, WIDTH).sum(axis=0)
        return total, [rank for rank, flag in enumerate(flags) if flag == b"\0"]

    def _update(self, assign: m.Assign, step: int, total: np.ndarray) -> None:
        self.record.update(phase=Phase.UPDATE)
        self.state = 0.9 * self.state + total[slice(*share(WIDTH, assign.rank, assign.world))]
        self.step = step
        if (step + 1) % self.plan.replicate_every and step + 1 < self.plan.steps:
            return
        data = self.state.tobytes()
        name = f"shard-{assign.rank}-{step}"
        draft = self.shards / f".{name}"
        draft.write_bytes(data)
        with self.line.writing():
            draft.replace(self.shards / name)
        (self.shards / f"shard-{assign.rank}-{step - 2 * self.plan.replicate_every}").unlink(missing_ok=True)
        self.held = {old for old in self.held if old >= step - self.plan.replicate_every}
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

    def _load(self, rank: int, step: int) -> None:
        """Waits as the plan's faults of kind `data` say: `seconds` in each of `steps` steps, on one rank, or on all (-1)."""
        for number, fault in enumerate(self.plan.inject):
            first = int(fault["step"])
            due = first <= step < first + int(fault.get("steps", 1)) and fault["rank"] in {rank, -1}
            if fault["kind"] == "data" and due and self._mark(f"{number}-{rank}-{step}"):
                time.sleep(float(fault["seconds"]))

    def _inject(self, assign: m.Assign, step: int, attempt: int, place: int) -> bool:
        """Does what the plan has for this rank, step and attempt. False: the gradient shall not be finite."""
        finite = True
        for number, fault in enumerate(self.plan.inject):
            kind, sticks = fault["kind"], fault.get("sticks", "once")
            if kind == "data":
                continue
            if kind == "nan" and sticks == "data":
                finite &= not (place == fault["rank"] and step == fault["step"])
            elif kind == "nan" and sticks == "card":
                card = f"{os.environ['N9_HOST']}/{os.environ['N9_SLOT']}"
                finite &= not (card == fault["card"] and step == fault["step"])
            elif (assign.rank, step, attempt) == (fault["rank"], fault["step"], fault.get("attempt", 0)) and self._mark(number):
                finite &= self._strike(kind, float(fault.get("factor", 3.0)))
        order = Path(self.plan.orders) / f"rank-{assign.rank}"
        if self.plan.orders and order.exists():
            kind = order.read_text()
            order.unlink()
            finite &= self._strike(kind, 2.0)
        return finite

    def _strike(self, kind: object, factor: float) -> bool:
        """False where this step's gradient shall not be finite."""
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif kind == "stuck":
            threading.Event().wait()
        elif kind == "error":
            raise RuntimeError("injected error of the program")
        elif kind == "break":
            raise ConnectionResetError("injected: the rank lets go of its group")
        elif kind == "slow":
            self.slow = factor
        else:
            return False
        return True

    def _mark(self, number: int | str) -> bool:
        try:
            with (Path(self.plan.marks) / str(number)).open("x") as mark:
                mark.write(f"{time.time()}")
        except FileExistsError:
            return False
        return True

    def _beat(self) -> None:
        while True:
            self.record.heartbeat()
            time.sleep(BEAT_SECONDS)


def main() -> None:
    """Entry point of the process that an agent starts."""
    plan = msgspec.convert(json.loads(os.environ.get("N9_SIMULATED", "{}")), Plan)
    try:
        Rank(plan).serve()
    except BrokenPipeError:
        sys.exit(4)


if __name__ == "__main__":
    main()
