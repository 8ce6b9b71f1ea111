"""The agent: one per host. Starts ranks and spares, watches them, holds shards, and does what the controller says.

It decides nothing about faults. It fences by itself, though: what a process of an ended generation says is answered with
Fenced and goes no further. Without its controller it keeps its ranks training, and connects again.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import time
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec
import zmq.asyncio

from ninthsky.errors import FAILED, OK, PARTIAL
from ninthsky.guard import protocol as p
from ninthsky.guard.agent.adopting import Adopting
from ninthsky.guard.agent.bringing import Bringing
from ninthsky.guard.agent.card import Card
from ninthsky.guard.agent.controllers import Controllers
from ninthsky.guard.agent.lines import Lines
from ninthsky.guard.agent.looking import LOOK_SECONDS, Looking
from ninthsky.guard.agent.owner import claim_folder
from ninthsky.guard.agent.shards import ShardExchange
from ninthsky.guard.agent.spawner import Process, Spawner, oom_kills, tail_of, watch_first
from ninthsky.guard.agent.store import ShardStore, remove_folder
from ninthsky.guard.agent.tester import Tester
from ninthsky.guard.keys import CONTROLLER, STANDBY, load_keys
from ninthsky.guard.probe import messages as m
from ninthsky.guard.seen import pack
from ninthsky.guard.spec import JobSpec, load_spec
from ninthsky.guard.telemetry.note import Note
from ninthsky.guard.telemetry.watcher import HostWatch
from ninthsky.guard.wire import keep_memory
from ninthsky.run.folder import write_json

RESPAWN_SECONDS = 0.5  # a new process starts after the survivors have gone on, not beside their regroup
GARBAGE = 20_000  # new objects, before cycles are looked for
REFUSALS_SECONDS = 2.0  # between two words about strangers, however many there are


class Agent:
    """Runs until told to stop; `run` returns an exit status."""

    def __init__(self, spec: JobSpec, host: str, keys_path: Path, controllers: dict[str, tuple[str, int]]) -> None:
        """`controllers`: address and port of each by its name in the key files."""
        self.spec, self.host = spec, spec.host(host)
        self.folder = spec.memory_folder(host)
        claim_folder(self.folder)
        self.generation = 0
        self.kept_out: set[int] = set()
        self._context = zmq.asyncio.Context()
        keys = load_keys(keys_path)
        replayed = self.spec.watch.replay_every
        self.store = ShardStore(self.folder, lambda step: bool(replayed) and (step + 1) % replayed == 0)
        self.exchange = ShardExchange(self._context, keys, self.store, self.host.address, self._shard_held)
        self.controller = Controllers(self._context, keys, controllers, [host.name for host in spec.hosts], spec.gather_seconds)
        self.looking = Looking(spec.report_seconds, spec.watch.hang_seconds)
        self.spawner = Spawner(spec.command, spec.env, self.folder, Path(spec.folder) / "logs", host, self._exited)
        self.lines = Lines(self.spawner, self._from_rank)
        watch, slots = spec.watch, self.host.slots + self.host.spares
        self.watch = HostWatch(
            host, slots, watch.exporter, watch.kernel_log, watch.exporter_seconds, self._noted, self._slot_of
        )
        self.tester = Tester(spec, host, self.spawner, self.controller.tell, lambda slot: self._start(slot, True))
        self.bringing = Bringing(self.exchange, self.spawner, self.lines, self.controller.tell)
        self.adopting = Adopting(self.store, self._counts, self.exchange.ship, self.lines.refused)
        self._cards: dict[int, Card] = {}  # by pid
        self._speaks = host in spec.speakers()
        self._leaving: Process | None = None  # the last one that ended
        self._committed = (0, -1)
        self._resume_step, self._world = -1, spec.world
        self._forming: list[asyncio.Task[None]] = []  # what brings this generation's state here
        self._parent = os.getppid()
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
        serving = (self.exchange.serve(), self.adopting.serve(), self.controller.serve())
        for work in (*serving, self._obey(), self._report()):
            self._spawn(work)
        self._spawn(self.watch.run())
        try:
            await self._stopping.wait()
        finally:
            for task in list(self._tasks):
                task.cancel()
            self.spawner.end_all()
            self.lines.close()
            self.exchange.close()
            self.watch.close()
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

    def _register(self) -> None:
        self.controller.flush()
        processes = []
        for process in self.spawner.processes.values():
            card = self._cards[process.pid]
            processes.append(
                p.ProcessState(process.slot, process.pid, card.ready, card.generation, card.rank, list(card.last.values()))
            )
        self.controller.send(
            p.Register(
                self.host.address,
                self.exchange.listener.port,
                self.generation,
                processes,
                self.controller.events,
                list(self.controller.ended),
                self.watch.newest(),
            )
        )

    def _slot_of(self, pid: int) -> int:
        """For the kernel's log: the card slot of a process of ours, -1 for others."""
        if self._leaving is not None and self._leaving.pid == pid:
            return self._leaving.slot
        ended = next((ended.slot for ended in reversed(self.controller.ended) if ended.pid == pid), -1)
        return self.spawner.slot_of(pid) if ended < 0 else ended

    def _noted(self, notes: list[Note], problems: list[str], dropped: int) -> None:
        self.controller.tell(p.Notes, notes, problems, dropped)

    async def _report(self) -> None:
        due = time.monotonic()
        done, tell_at = ("", 0), 0.0
        while True:
            now = time.monotonic()
            if self.looking.look(self.spawner.processes.values(), now) or done != self.controller.done:
                done = self.controller.done
                self._send_report(max(0.0, now - due))
            if now >= tell_at:
                tell_at = now + REFUSALS_SECONDS
                refused = self.lines.refused + self.exchange.listener.refused + self.controller.refused
                if refused != self._told:
                    self._told = refused
                    self.controller.tell(p.Refusals, dict(refused))
            if os.getppid() != self._parent:
                self._stopping.set()  # PDEATHSIG does not pass through a launcher such as ssh or ip netns exec
            due = max(due + LOOK_SECONDS, now)
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    def _send_report(self, late: float = 0.0) -> None:
        self.controller.flush()
        unheld = {}
        for process in self.spawner.processes.values():
            card = self._cards[process.pid]
            if card.rank >= 0 and not card.fenced:
                unheld[process.pid] = self.exchange.unheld_seconds(card.rank)
        seen = self.looking.seen(self.spawner.processes.values(), unheld, time.monotonic())
        self.controller.send(p.Report(self.controller.events, *self.controller.done, late, pack(seen)))

    # -- from the controller ------------------------------------------------------------------------------------------

    async def _obey(self) -> None:
        while True:
            self._do(await self.controller.order())

    def _do(self, command: p.Command) -> None:
        if isinstance(command, p.WhoAreYou):
            self._register()
        elif isinstance(command, p.Prepare):
            self._prepare(command)
        elif isinstance(command, p.Form):
            self._form(command)
        elif isinstance(command, p.ToSlots):
            for place in command.places:
                if (process := self._process(*place)) is not None:
                    self._pass_on(process, command.message)
        elif isinstance(command, p.ToAll):
            for process in self.spawner.processes.values():
                card = self._cards[process.pid]
                if card.generation == self.generation and not card.fenced:
                    self._pass_on(process, command.message)
        elif isinstance(command, p.Dismiss):
            if (process := self._process(command.slot, command.pid)) is not None:
                self._fence(process, self._cards[process.pid])
                if command.kill:
                    self.spawner.kill(process)
        elif isinstance(command, p.SelfTest):
            self._spawn(self.tester.card(command))
        elif isinstance(command, p.LinkTest):
            self._spawn(self.tester.link(command))
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
        if isinstance(message, m.Decide):
            card.last.pop(m.Corrupt, None)
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
        for task in self._forming:
            task.cancel()
        self._forming.clear()
        for process in self.spawner.processes.values():
            card = self._cards[process.pid]
            card.waiting = None  # what is still being placed belongs to an older generation
            if 0 < card.generation < prepare.generation and not card.fenced:
                self.lines.send(process, m.Abort(card.generation, prepare.reason))
        self.controller.tell(p.Inventory, self.generation, self.store.inventory())

    def _form(self, form: p.Form) -> None:
        if form.generation < self.generation:
            return
        self.generation = self.exchange.generation = form.generation
        self.store.forget_after(form.resume_step)
        self.exchange.set_ring(form.peers)
        self._resume_step, self.bringing.held = form.resume_step, form.held
        self._world = next((place.assign.world for place in form.places), self._world)
        placed = {place.pid for place in form.places}
        for process in self.spawner.processes.values():
            card = self._cards[process.pid]
            if card.generation and process.pid not in placed:
                self._fence(process, card)
        hosts = self.spec.homes()
        for rank, host in form.away.items():
            hosts[rank] = host
        for place in form.places:
            if (chosen := self._process(place.slot, place.pid)) is not None:
                card = self._cards[chosen.pid]
                card.generation, card.rank, card.last, card.waiting = form.generation, place.assign.rank, {}, []
                assign = msgspec.structs.replace(
                    place.assign, hosts=hosts[: place.assign.world], ranks_before=form.ranks_before
                )
                self._forming.append(
                    self._spawn(self.bringing.place(chosen, card, msgspec.structs.replace(place, assign=assign)))
                )
        if form.again:
            self._forming.append(self._spawn(self.bringing.double(form, list(self._forming))))

    def _refused(self, refused: p.Refused) -> None:
        """This host was replaced while it could not be reached: its ranks write nothing more, and nothing is started again."""
        self.generation = self.exchange.generation = refused.generation
        for process in self.spawner.processes.values():
            self._fence(process, self._cards[process.pid])
        self._status = PARTIAL
        asyncio.get_running_loop().call_later(1.0, self._stopping.set)  # time for the ranks to hear it

    # -- ranks --------------------------------------------------------------------------------------------------------

    def _start(self, slot: int, background: bool = False) -> None:
        taken = slot in self.spawner.processes or self.tester.holds(slot) or slot in self.kept_out
        if taken or self._stopping.is_set() or self._status != OK:
            return
        process = self.spawner.start(slot, background=background)
        self._cards[process.pid] = Card()
        self.controller.tell(p.Started, slot, process.pid)

    def _exited(self, process: Process, status: int) -> None:
        self._leaving = process
        self.watch.look()  # the kernel may have told why
        self._cards.pop(process.pid, None)
        oom, tail = oom_kills() - process.oom_before, tail_of(process.log)
        record = self.looking.forget(process)
        self.controller.tell(p.Exited, process.slot, process.pid, status, oom, str(process.log), tail, record)
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
            self.adopting.put(process, message)
            return
        if isinstance(message, m.Wanted):
            self._spawn(self.bringing.wanted(process, card, message))
            return
        if isinstance(message, m.Damaged):
            self._replace_shard(message)
            return
        if isinstance(message, m.Committed):
            if (message.generation, message.step) <= self._committed or not self._speaks:
                return  # another rank of this host has said so, or other hosts do
            self._committed = (message.generation, message.step)
            if message.step > self._resume_step:  # ranks that there are no more leave nothing behind
                self.store.forget_ranks(self._world)
        card.last[type(message)] = message
        self.controller.gather(process.slot, process.pid, message)

    def _counts(self, process: Process, shard: m.Shard) -> bool:
        """Whether what a rank announced is of this generation. If not, an Abort is on its way to it, or Fenced."""
        card = self._cards.get(process.pid)
        return card is not None and not card.fenced and shard.generation >= self.generation and shard.rank == card.rank

    def _replace_shard(self, damaged: m.Damaged) -> None:
        """What this host holds is of no use: the next generation takes another copy, or an older step, or the disk."""
        self.store.discard(damaged.rank, damaged.step)
        self.lines.refused["damaged shard"] += 1
        self.controller.tell(p.PlaceFailed, damaged.generation, damaged.rank, damaged.reason)

    def _shard_held(self, info: p.ShardInfo) -> None:
        for process in self.spawner.processes.values():
            card = self._cards[process.pid]
            if card.rank == info.rank and card.generation == self.generation and not card.fenced:
                self.lines.send(process, m.ShardHeld(info.rank, info.step))

    def _fence(self, process: Process, card: Card) -> None:
        if not card.fenced:
            card.fenced = True
            self._tell_fenced(process, card)

    def _tell_fenced(self, process: Process, card: Card) -> None:
        self.lines.send(process, m.Fenced(self.generation))

    def _process(self, slot: int, pid: int) -> Process | None:
        process = self.spawner.processes.get(slot)
        return process if process is not None and process.pid == pid else None

    # -- its own life -------------------------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._status = FAILED
            self._stopping.set()
            asyncio.get_running_loop().call_exception_handler({"message": "agent", "exception": error, "task": task})


def main(job: Path, host: str, keys: Path, controller: tuple[str, int], standby: tuple[str, int] | None = None) -> int:
    """`n9 guard agent`: addresses and ports of the job's controllers."""

    watch_first()
    keep_memory()
    # What was imported stays. To walk all of it again every few seconds, on caches that the ranks have filled, was a fifth of
    # what an agent cost.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE)

    async def work() -> int:
        controllers = {CONTROLLER: controller} | ({STANDBY: standby} if standby else {})
        return await Agent(load_spec(job), host, keys, controllers).run()

    return asyncio.run(work())
