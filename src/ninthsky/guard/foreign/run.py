"""`n9 guard run -- COMMAND`: starts it, watches its ranks, tells of faults, and starts it again where that is allowed."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ninthsky.errors import FAILED, UserError
from ninthsky.guard import protocol as p
from ninthsky.guard.agent.looking import Looking
from ninthsky.guard.agent.owner import claim_folder, refuse_if_owned
from ninthsky.guard.agent.spawner import watch_first
from ninthsky.guard.agent.store import remove_folder
from ninthsky.guard.controller.outward import Outward
from ninthsky.guard.foreign.command import Command
from ninthsky.guard.foreign.ends import PATIENCE
from ninthsky.guard.foreign.hosts import Follower, Leader
from ninthsky.guard.foreign.messages import FromForeign
from ninthsky.guard.foreign.ranks import Adopted, Ranks
from ninthsky.guard.foreign.restarts import Restarts
from ninthsky.guard.foreign.supervisor import Supervisor
from ninthsky.guard.job import forget_earlier
from ninthsky.guard.probe import host_here
from ninthsky.guard.spec import HostSpec, JobSpec, Watch
from ninthsky.guard.watch import line_of
from ninthsky.run.folder import append_line, read_json, write_json

LOOK_SECONDS = 0.1
SILENT_SECONDS = 60.0  # without any rank: then it is said that nobody came
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True)
class Options:
    """What `n9 guard run` was told. Times in seconds."""

    folder: Path
    watch: Watch
    restarts: int
    stuck_seconds: float
    json_lines: bool = False
    hosts: tuple[HostSpec, ...] = ()  # of a command on several hosts, the one that decides first
    host: str = ""  # which of them this is
    memory: Path = Path("/dev/shm")


class Run:
    """One command on this host. `run` returns the exit status for a shell."""

    def __init__(self, command: Sequence[str], options: Options) -> None:
        self.options, self.folder = options, options.folder.resolve()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                "N9-GRD-060", f"no folder: {error}", "--job", "name a folder that can be made or written"
            ) from error
        self.host = options.host or host_here()
        self._leads = not options.hosts or options.hosts[0].name == self.host
        if self._leads:
            forget_earlier(self.folder)
        self._address = self.folder / f"ranks-{self.host}.json"  # where probe.watch() finds us
        _sweep(self._address, options.memory)
        self.name = re.sub(r"[^A-Za-z0-9_-]", "-", self.folder.name)[:24] + f"-{os.getpid()}"
        self.shared = options.memory / f"n9-{self.name}"
        refuse_if_owned(self.shared)
        claim_folder(self.shared)
        looking = Looking(LOOK_SECONDS, options.watch.hang_seconds)
        self.ranks = Ranks(self.shared, looking, self._came, self._said, self._ended)
        log = f"{self.host}-command" if options.hosts else "command"
        self.command = Command(command, self.folder / "logs" / log, self.shared, self.name, hold=options.watch.action == "act")
        self.supervisor: Supervisor | Follower | None = None
        self._leader: Leader | None = None
        self._outward: Outward | None = None
        self._restarts = Restarts(options.restarts, possible=bool(command))
        self._started = time.monotonic()
        self._blind = False  # after a mistake of our own
        self._left = False  # told to end, with no command to pass that on to

    async def run(self) -> int:
        """To the end of the command, and of whatever it is started again for."""
        loop = asyncio.get_running_loop()
        for number in PASSED_ON:
            loop.add_signal_handler(number, self._signalled, number)
        await self.ranks.listen()
        write_json(self._address, {"ranks": str(self.shared)})
        try:
            if self.options.hosts:
                self._begin_together()
            self._start()
            return await self._watch()
        finally:
            if isinstance(self.supervisor, Follower):
                self.supervisor.close()
            self.ranks.close()
            remove_folder(self.shared)
            self._address.unlink(missing_ok=True)

    async def _watch(self) -> int:
        due = time.monotonic()
        silent = due + SILENT_SECONDS
        while True:
            now = time.monotonic()
            self.command.pump()
            ended = self._status()
            if self.supervisor is not None:
                await self._look(self.supervisor, now, max(0.0, now - due), ended)
                if self.supervisor.wanted == "again":
                    await self._again(self.supervisor)
                    continue
                if self.supervisor.wanted == "stop":
                    await self.command.end(self.supervisor.frozen)
                    if isinstance(self.supervisor, Follower):
                        await self.supervisor.goodbye(FAILED)
                    return await self._finish(FAILED)
            if ended is None and silent and now > silent:
                silent = 0.0
                self._say_who_is_missing()
            if ended is not None and self._settled(ended):
                return await self._finish(ended)
            due = max(due + LOOK_SECONDS, now)
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    def _say_who_is_missing(self) -> None:
        if self.supervisor is None:
            self._say("no rank has told of itself: no torch, another Python, -I or -S? n9 guard watch sees it from outside")
        elif isinstance(self.supervisor, Supervisor) and self.supervisor.missing:
            self._say(f"{self.supervisor.missing}, so nothing is judged; ranks on other hosts are told by --hosts")

    def _status(self) -> int | None:
        """Of the command, or where there is none, of the ranks that came by themselves."""
        if self.command.arguments:
            return self.command.status
        if self._left:
            return 0
        came = self.supervisor
        return came.status() if isinstance(came, Supervisor) and came.all_ended else None

    def _settled(self, status: int) -> bool:
        """Whether the command, which has ended, will not be started again for another host's sake."""
        if isinstance(self.supervisor, Follower):
            return self.supervisor.settled
        return self._leader is None or self._leader.ready(status)

    async def _look(self, supervisor: Supervisor | Follower, now: float, late: float, ended: int | None) -> None:
        """A mistake of ours is told, and the command goes on: its output, signals and status still pass through."""
        if self._blind:
            return
        try:
            supervisor.report(self.host, self.ranks.seen(now), late)
            supervisor.tick()
            if ended is not None and not supervisor.wanted and (self._leader is None or self._leader.ready(ended)):
                await self._drain(supervisor, ended)
            if self._outward is not None:
                self._outward.tick()
        except Exception:
            self._blind, supervisor.wanted = True, ""
            self._say(f"the guard itself failed; the command goes on unwatched\n{traceback.format_exc()}")

    async def _drain(self, supervisor: Supervisor | Follower, status: int) -> None:
        """The command has ended: the ends of its ranks are on their way."""
        deadline = time.monotonic() + PATIENCE
        while self.ranks.living and time.monotonic() < deadline:
            await asyncio.sleep(LOOK_SECONDS / 5)
        supervisor.command_ended(status)

    async def _again(self, supervisor: Supervisor | Follower) -> None:
        frozen = supervisor.frozen
        await self.command.end(frozen)
        while self.ranks.living:  # all are dead; each end is still to be heard
            await asyncio.sleep(LOOK_SECONDS / 5)
        supervisor.begin()
        if self._leader is not None:
            await self._leader.again(self.command.attempt + 1, frozen)
        self._start()

    def _start(self) -> None:
        try:
            self.command.start()
        except OSError as error:
            what = f"cannot be started: {error}"
            raise UserError("N9-GRD-060", what, " ".join(self.command.arguments[:3]), "n9 guard run -- COMMAND") from error
        if self.command.arguments:
            self._event("command.started", attempt=self.command.attempt, command=self.command.arguments)
        else:
            self._say(f'waiting for ranks that say probe.watch("{self.folder}")')

    async def _finish(self, status: int) -> int:
        self.command.pump()
        if self._leader is not None and self.supervisor is not None:
            await self._leader.close(stop=self.supervisor.wanted == "stop", frozen=self.supervisor.frozen)
        if isinstance(self.supervisor, Supervisor):
            if self._outward is not None:
                self._outward.close()
            self.supervisor.write_result(status, time.monotonic() - self._started, self.command.attempt)
        return status if status >= 0 else 128 - status

    # -- what comes in ------------------------------------------------------------------------------------------------

    def _came(self, rank: Adopted) -> None:
        if self.supervisor is None:
            self._begin([HostSpec(name=self.host, slots=rank.adopt.world, spares=0)])  # the first rank says how many there are
        assert self.supervisor is not None
        self.supervisor.rank(self.host, rank.slot, rank.adopt)

    def _begin_together(self) -> None:
        """On several hosts it is said beforehand how many ranks each has."""
        if not self._leads:
            self.supervisor = Follower(self.folder, self.host)
            return
        names = [host.name for host in self.options.hosts]
        supervisor = self._begin(list(self.options.hosts))
        self._leader = Leader(self.folder, names, self.options.watch.bind, supervisor)

    def _begin(self, hosts: list[HostSpec]) -> Supervisor:
        spec = JobSpec(
            run_id=self.name,
            folder=str(self.folder),
            command=self.command.arguments,
            world=sum(host.slots for host in hosts),
            hosts=hosts,
            watch=self.options.watch,
            memory=str(self.options.memory),
        )
        spec.save()
        supervisor = self.supervisor = Supervisor(
            spec, self._event, self._restarts, self.options.stuck_seconds, self.command.tail, time.monotonic, time.time
        )
        self._outward = Outward(supervisor.state, supervisor.approve)
        return supervisor

    def _said(self, rank: Adopted, message: FromForeign) -> None:
        assert self.supervisor is not None
        self.supervisor.message(rank.pid, message)

    def _ended(self, rank: Adopted, exited: p.Exited) -> None:
        assert self.supervisor is not None
        self.supervisor.ended(self.host, exited)

    def _signalled(self, number: int) -> None:
        if number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP) and self.supervisor is not None:
            self.supervisor.stop_asked()
        self._left = not self.command.arguments and number in (signal.SIGINT, signal.SIGTERM)
        self.command.pass_on(number)

    # -- what goes out ------------------------------------------------------------------------------------------------

    def _event(self, kind: str, **fields: Any) -> None:
        record = {"time": time.time(), "kind": kind, "job": self.name, **fields}
        if self._leads:
            append_line(self.folder / "events.jsonl", record)
        if self.options.json_lines:
            print(json.dumps(record, ensure_ascii=False), file=sys.stderr, flush=True)
        elif text := line_of(record):
            self._say(text)
        if self._outward is not None:
            self._outward.heard(record)

    def _say(self, text: str) -> None:
        self.command.pump()
        print("\n".join(f"n9: {line}" for line in text.splitlines()), file=sys.stderr, flush=True)


def _sweep(address: Path, memory: Path) -> None:
    """Removes what a guard that was killed has left in shared memory. Raises UserError N9-GRD-003 where it lives."""
    before = read_json(address)
    left = Path(before["ranks"]) if before is not None else None
    if left is not None and left.parent == memory and left.name.startswith("n9-"):
        refuse_if_owned(left)
        remove_folder(left)


def parse_hosts(text: str, host: str) -> tuple[tuple[HostSpec, ...], str]:
    """`a:8,b:8`, and which of them this is. Raises UserError N9-GRD-060 where that does not fit together."""
    if not text:
        return (), host
    found = []
    for part in text.split(","):
        name, _, slots = part.partition(":")
        if not slots.isdecimal() or not int(slots):
            raise UserError("N9-GRD-060", f"{part!r} is no NAME:RANKS", "--hosts", "--hosts node1:8,node2:8")
        found.append(HostSpec(name=name, slots=int(slots), spares=0))
    here = host or host_here()
    if here not in {one.name for one in found}:
        raise UserError("N9-GRD-060", f"this host, {here!r}, is not among {text!r}", "--hosts", "--host NAME says which it is")
    return tuple(found), here


def main(command: Sequence[str], options: Options) -> int:
    """`n9 guard run`."""
    if not command and options.watch.action == "act":
        what = "no command: nothing can be started again"
        raise UserError("N9-GRD-060", what, "n9 guard run --act", "n9 guard run --act -- torchrun --nproc-per-node 8 train.py")
    watch_first()
    return asyncio.run(Run(command, options).run())
