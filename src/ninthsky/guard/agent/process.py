"""The agent: one per host. Starts ranks and spares, watches them, holds shards, and does what the controller says.

It decides nothing about faults. It fences by itself, though: what a process of an ended generation says is answered with
Fenced and goes no further. Without its controller it keeps its ranks training, and connects again.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import struct
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import zmq.asyncio

from ninthsky.errors import FAILED, OK, PARTIAL, UserError
from ninthsky.guard import protocol as p
from ninthsky.guard.agent.lines import Lines
from ninthsky.guard.agent.shards import ShardExchange
from ninthsky.guard.agent.spawner import Process, Spawner, oom_kills, process_state, tail_of, watch_first
from ninthsky.guard.agent.store import ShardStore, remove_folder, shard_name
from ninthsky.guard.keys import CONTROLLER, load_keys
from ninthsky.guard.probe import messages as m
from ninthsky.guard.probe.record import HEADER, read_raw
from ninthsky.guard.spec import JobSpec, load_spec
from ninthsky.guard.wire import Caller, keep_memory
from ninthsky.run.folder import write_json

LOOK_SECONDS = 0.1
MISSED_BEATS = 0.5  # a heart that has not beaten for so long is told at once
RESPAWN_SECONDS = 0.5  # a new process starts after the survivors have gone on, not beside their regroup
_HEARTBEAT = HEADER.size - 8


@dataclass
class _Card:
    """What the agent knows of the process in a slot, beyond the process itself."""

    ready: bool = False
    generation: int = 0
    rank: int = -1
    fenced: bool = False
    waiting: list[m.ToRank] | None = None  # messages that came while its state is still brought: they follow Assign
    last: dict[type, m.ToAgent] = field(default_factory=dict)


class Agent:
    """Runs until told to stop; `run` returns an exit status."""

    def __init__(self, spec: JobSpec, host: str, keys_path: Path, address: str, port: int) -> None:
        self.spec, self.host = spec, spec.host(host)
        self.folder = spec.memory_folder(host)
        claim_folder(self.folder)
        self.generation = 0
        self.kept_out: set[int] = set()
        self._context = zmq.asyncio.Context()
        keys = load_keys(keys_path)
        self.store = ShardStore(self.folder)
        self.exchange = ShardExchange(self._context, keys, self.store, self.host.address, self._shard_held)
        self.controller: Caller[p.Numbered] = Caller(self._context, keys, CONTROLLER, p.Numbered, address, port)
        self.spawner = Spawner(spec.command, spec.env, self.folder, Path(spec.folder) / "logs", host, self._exited)
        self.lines = Lines(self.spawner, self._from_rank)
        self._cards: dict[int, _Card] = {}  # by pid
        self._events = 0
        self._committed = (0, -1)
        self._controller_id = ""
        self._command = 0
        self._stopping = asyncio.Event()
        self._status = OK
        self._told: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        await self.lines.listen(self.folder / "agent.sock")
        for slot in range(self.host.slots + self.host.spares):
            self._start(slot)
        self._register()
        for work in (self.exchange.serve(), self._obey(), self._report(), self._watch_parent(os.getppid())):
            self._spawn(work)
        try:
            await self._stopping.wait()
        finally:
            for task in list(self._tasks):
                task.cancel()
            self.spawner.end_all()
            self.lines.close()
            self.exchange.close()
            self.controller.close()
            remove_folder(self.folder)
            self._context.destroy(linger=0)
            self._write_usage()
        return self._status

    def _write_usage(self) -> None:
        """Processor seconds of the agent and of its ranks: what the guard costs is counted, not guessed."""
        own, ranks = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        write_json(
            Path(self.spec.folder) / "usage" / f"{self.host.name}.json",
            {
                "agent_cpu_seconds": round(own.ru_utime + own.ru_stime, 3),
                "ranks_cpu_seconds": round(ranks.ru_utime + ranks.ru_stime, 3),
                "mb": round(own.ru_maxrss / 1024, 1),
            },
        )

    # -- towards the controller ---------------------------------------------------------------------------------------

    def _event(self) -> int:
        self._events += 1
        return self._events

    def _register(self) -> None:
        processes = []
        for process in self.spawner.processes.values():
            card = self._cards[process.pid]
            processes.append(
                p.ProcessState(process.slot, process.pid, card.ready, card.generation, card.rank, list(card.last.values()))
            )
        self.controller.send(
            p.Register(self.host.address, self.exchange.listener.port, self.generation, processes, self._events)
        )

    async def _report(self) -> None:
        due = time.monotonic()
        told: set[int] = set()
        report_at = due
        while True:
            now = time.monotonic()
            seen = self._look(now)
            unusual = {process.pid for process in seen if process.state in "Tt" or process.age > MISSED_BEATS}
            if now >= report_at or unusual - told:
                self._send_report(max(0.0, now - due), seen)
                report_at = max(report_at, now - LOOK_SECONDS) + self.spec.report_seconds
            told = unusual
            refused = self.lines.refused + self.exchange.listener.refused
            if refused != self._told:
                self._told = refused
                self.controller.send(p.Refusals(self._event(), dict(refused)))
            due = max(due + LOOK_SECONDS, now)
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    def _send_report(self, late: float = 0.0, seen: list[p.Seen] | None = None) -> None:
        seen = self._look(time.monotonic()) if seen is None else seen
        self.controller.send(p.Report(self._events, self._controller_id, self._command, late, seen))

    def _look(self, now: float) -> list[p.Seen]:
        seen = []
        for process in self.spawner.processes.values():
            record = read_raw(process.record) or b""
            age = now - _heartbeat(record) if record else -1.0
            state, cpu = process_state(process.pid)
            card = self._cards[process.pid]
            unheld = self.exchange.unheld_seconds(card.rank) if card.rank >= 0 and not card.fenced else 0.0
            seen.append(p.Seen(process.slot, process.pid, record, age, state, cpu, unheld))
        return seen

    # -- from the controller ------------------------------------------------------------------------------------------

    async def _obey(self) -> None:
        while True:
            numbered = await self.controller.receive()
            if numbered.controller != self._controller_id:
                self._controller_id, self._command = numbered.controller, 0
            if numbered.number:
                if numbered.number != self._command + 1:
                    continue  # one before it was lost: both come again
                self._command = numbered.number
            self._do(numbered.command)

    def _do(self, command: p.Command) -> None:
        if isinstance(command, p.WhoAreYou):
            self._register()
        elif isinstance(command, p.Prepare):
            self._prepare(command)
        elif isinstance(command, p.Form):
            self._form(command)
        elif isinstance(command, p.ToSlot):
            if (process := self._process(command.slot, command.pid)) is not None:
                self._pass_on(process, command.message)
        elif isinstance(command, p.Dismiss):
            if (process := self._process(command.slot, command.pid)) is not None:
                self._fence(process, self._cards[process.pid])
                if command.kill:
                    self.spawner.kill(process)
        elif isinstance(command, p.KeepOut):
            self.kept_out.add(command.slot)
        elif isinstance(command, p.Refused):
            self._refused(command)
        else:
            self._stopping.set()

    def _pass_on(self, process: Process, message: m.ToRank) -> None:
        card = self._cards[process.pid]
        answered = {m.Decide: m.Bad, m.Permit: m.MayCommit}.get(type(message))
        if answered:
            card.last.pop(answered, None)
        if card.waiting is not None:
            card.waiting.append(message)
        else:
            self.lines.send(process, message)

    def _prepare(self, prepare: p.Prepare) -> None:
        if prepare.generation < self.generation:
            return
        self._send_report()  # how far the old generation came
        self.generation = self.exchange.generation = prepare.generation
        self.exchange.drop_unheld()
        for process in self.spawner.processes.values():
            card = self._cards[process.pid]
            card.waiting = None  # what is still being placed belongs to an older generation
            if 0 < card.generation < prepare.generation and not card.fenced:
                self.lines.send(process, m.Abort(card.generation, prepare.reason))
        self.controller.send(p.Inventory(self._event(), self.generation, self.store.inventory()))

    def _form(self, form: p.Form) -> None:
        if form.generation < self.generation:
            return
        self.generation = self.exchange.generation = form.generation
        self.store.forget_after(form.resume_step)
        self.exchange.set_ring(form.peers)
        placed = {place.pid for place in form.places}
        for process in self.spawner.processes.values():
            card = self._cards[process.pid]
            if card.generation and process.pid not in placed:
                self._fence(process, card)
        for place in form.places:
            if (chosen := self._process(place.slot, place.pid)) is not None:
                card = self._cards[chosen.pid]
                card.generation, card.rank, card.last, card.waiting = form.generation, place.assign.rank, {}, []
                self._spawn(self._place(chosen, place))

    async def _place(self, process: Process, place: p.Place) -> None:
        """Brings the rank's state into the process's own folder, then assigns it."""
        assign, card = place.assign, self._cards[process.pid]
        if place.source:
            info = p.ShardInfo(assign.rank, assign.resume_step, -1, place.xxh3)  # its size comes with its first piece
            try:
                await self.exchange.fetch(info, place.source)
                if not self.store.give(info, process.folder):
                    raise OSError(f"{shard_name(info.rank, info.step)} is not held")
            except (OSError, TimeoutError) as error:
                reason = str(error) or f"{place.source} did not answer"
                self.controller.send(p.PlaceFailed(self._event(), assign.generation, assign.rank, reason))
                return
        if card.generation == assign.generation and card.waiting is not None:
            self.spawner.to_foreground(process)
            for message in (assign, *card.waiting):
                self.lines.send(process, message)
            card.waiting = None

    def _refused(self, refused: p.Refused) -> None:
        """This host was replaced while it could not be reached: its ranks write nothing more, and nothing is started again."""
        self.generation = self.exchange.generation = refused.generation
        for process in self.spawner.processes.values():
            self._fence(process, self._cards[process.pid])
        self._status = PARTIAL
        asyncio.get_running_loop().call_later(1.0, self._stopping.set)  # time for the ranks to hear it

    # -- ranks --------------------------------------------------------------------------------------------------------

    def _start(self, slot: int, background: bool = False) -> None:
        if slot in self.kept_out or self._stopping.is_set() or self._status != OK:
            return
        process = self.spawner.start(slot, background=background)
        self._cards[process.pid] = _Card()
        self.controller.send(p.Started(self._event(), slot, process.pid))

    def _exited(self, process: Process, status: int) -> None:
        self._cards.pop(process.pid, None)
        oom, tail = oom_kills() - process.oom_before, tail_of(process.log)
        record = read_raw(process.record) or b""
        ended = p.Exited(self._event(), process.slot, process.pid, status, oom, str(process.log), tail, record)
        self.controller.send(ended)
        remove_folder(process.folder)
        asyncio.get_running_loop().call_later(RESPAWN_SECONDS, self._start, process.slot, True)

    def _from_rank(self, process: Process, message: m.ToAgent) -> None:
        card = self._cards.get(process.pid)
        if card is None or isinstance(message, m.Hello):
            return
        generation = getattr(message, "generation", None)
        if card.fenced:
            self._tell_fenced(process, card)
            return
        if generation is not None and generation != card.generation:
            return  # said before the process heard of its new place: its Abort and its Assign are on their way
        if isinstance(message, m.Ready):
            card.ready = True
        if isinstance(message, m.Shard):
            self._take_shard(process, card, message)
            return
        if isinstance(message, m.Damaged):
            self._replace_shard(message)
            return
        if isinstance(message, m.Committed):
            if (message.generation, message.step) <= self._committed:
                return  # another rank of this host has said so
            self._committed = (message.generation, message.step)
        card.last[type(message)] = message
        self.controller.send(p.FromRank(self._event(), process.slot, process.pid, message))

    def _take_shard(self, process: Process, card: _Card, shard: m.Shard) -> None:
        if shard.generation < self.generation or shard.rank != card.rank:
            self.lines.refused["stale shard"] += 1
            return  # an Abort is on its way to the rank, or Fenced
        info = p.ShardInfo(shard.rank, shard.step, shard.size, shard.xxh3)
        reason = self.store.adopt(process.folder / shard_name(shard.rank, shard.step), info)
        if reason:
            self.lines.refused[f"shard with a wrong checksum: {reason}"] += 1
            return
        self.exchange.ship(info)

    def _replace_shard(self, damaged: m.Damaged) -> None:
        """What this host holds is of no use: the next generation takes another copy, or an older step, or the disk."""
        self.store.discard(damaged.rank, damaged.step)
        self.lines.refused["damaged shard"] += 1
        self.controller.send(p.PlaceFailed(self._event(), damaged.generation, damaged.rank, damaged.reason))

    def _shard_held(self, info: p.ShardInfo) -> None:
        for process in self.spawner.processes.values():
            card = self._cards[process.pid]
            if card.rank == info.rank and card.generation == self.generation and not card.fenced:
                self.lines.send(process, m.ShardHeld(info.rank, info.step))

    def _fence(self, process: Process, card: _Card) -> None:
        if not card.fenced:
            card.fenced = True
            self._tell_fenced(process, card)

    def _tell_fenced(self, process: Process, card: _Card) -> None:
        self.lines.send(process, m.Fenced(self.generation))

    def _process(self, slot: int, pid: int) -> Process | None:
        process = self.spawner.processes.get(slot)
        return process if process is not None and process.pid == pid else None

    # -- its own life -------------------------------------------------------------------------------------------------

    def _spawn(self, work: object) -> None:
        task = asyncio.ensure_future(work)  # type: ignore[call-overload]
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._status = FAILED
            self._stopping.set()
            asyncio.get_running_loop().call_exception_handler({"message": "agent", "exception": error, "task": task})

    async def _watch_parent(self, parent: int) -> None:
        """PDEATHSIG does not pass through a launcher such as ssh or ip netns exec."""
        while os.getppid() == parent:
            await asyncio.sleep(1.0)
        self._stopping.set()


def _heartbeat(record: bytes) -> float:
    return float(struct.unpack_from("<d", record, _HEARTBEAT)[0])


def claim_folder(folder: Path) -> None:
    """Makes the agent's folder (mode 0700), clearing what a dead agent left. Raises UserError N9-GRD-003 if one lives."""
    refuse_if_owned(folder)
    remove_folder(folder)
    folder.mkdir(mode=0o700, parents=True)
    (folder / "agent.pid").write_text(f"{os.getpid()} {_start_time(os.getpid())}\n")


def refuse_if_owned(folder: Path) -> None:
    """Raises UserError N9-GRD-003 while the agent that made this folder lives."""
    try:
        pid, started = (folder / "agent.pid").read_text().split()
    except (OSError, ValueError):
        return
    if _start_time(int(pid)) == started:
        what = f"process {pid} is the agent of a job with this run id"
        raise UserError("N9-GRD-003", what, str(folder), f"kill {pid}, or choose another id")


def _start_time(pid: int) -> str:
    """The process's start in clock ticks: a pid alone may have been given to another process since."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return "gone"
    return text[text.rindex(b")") + 2 :].split()[19].decode()


def main(job: Path, host: str, keys: Path, address: str, port: int) -> int:
    """`n9 guard agent`."""

    watch_first()
    keep_memory()

    async def work() -> int:
        return await Agent(load_spec(job), host, keys, address, port).run()

    return asyncio.run(work())
