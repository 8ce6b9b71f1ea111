"""The agents of a simulated fleet: they report, answer commands and lose messages as real ones do, on an injected clock.

What they say is encoded as on the wire and decoded as the controller does it. Commands reach them at once and are never lost.
"""

from __future__ import annotations

import heapq
import itertools
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import numpy as np

from ninthsky.guard import protocol as p
from ninthsky.guard.controller.conductor import Conductor
from ninthsky.guard.controller.fleet import ROW_TYPE
from ninthsky.guard.drill.simulator import PER_HOST, SimulatedFleet
from ninthsky.guard.probe import messages as m
from ninthsky.guard.spec import HostSpec, JobSpec

LATENCY = 0.01
JOIN_SECONDS = (0.3, 0.8)
AT_REST, SELDOM = 0.25, 5  # as in agent/looking.py
RESPAWN_SECONDS = 10.0  # until a process that ended has a successor that is ready
ALARM_SECONDS = (0.1, 0.6)  # after a strike: its agent reports at once, and once more when a heart has missed beats

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[p.ToController] = msgspec.msgpack.Decoder(p.ToController)


@dataclass
class Agent:
    """One host's."""

    number: int
    name: str
    events: int = 0
    delivered: float = 0.0  # when its last message arrived: they keep their order
    refused: bool = False
    generation: int = 0
    controller: str = ""  # whose command was the last one done, and its number
    command: int = 0
    gathered: list[p.FromRank] = field(default_factory=list)
    last: dict[int, dict[type, m.ToAgent]] = field(default_factory=dict)  # by process


def host_specs(hosts: int, spares: int) -> list[HostSpec]:
    """The hosts of a simulated fleet, as its job has them."""
    return [HostSpec(name=f"host-{number:04d}", slots=PER_HOST, spares=spares) for number in range(hosts)]


class Agents:
    """All agents, and what is on its way between them and the controller. `spent` is the controller's processor time."""

    def __init__(self, fleet: SimulatedFleet, spec: JobSpec, clock: Callable[[], float]) -> None:
        self.fleet, self.gather, self.clock = fleet, spec.gather_seconds, clock
        self.often = spec.report_seconds
        self.period = max(self.often, min(1.0, spec.watch.hang_seconds / SELDOM))  # as agents do at rest
        self._told_rest = np.full(fleet.hosts, -1)  # the step of which a host has reported that its ranks are done with it
        speakers = spec.speakers()
        self._speakers = {number for number, host in enumerate(spec.hosts) if host.name in speakers}
        names = [spec.name for spec in host_specs(fleet.hosts, 0)]
        self.agents = [Agent(number, name) for number, name in enumerate(names)]
        self.number_of = {name: number for number, name in enumerate(names)}
        self.conductor: Conductor | None = None
        self.spent = 0.0
        self.bytes = self.messages = 0
        self._order = itertools.count()
        self._mail: list[tuple[float, int, str, bytes]] = []  # heap: arrival, order, host, body
        self._todo: list[tuple[float, int, Callable[[], None]]] = []  # heap: what the agents do later
        self._reports: list[tuple[float, int, int]] = []
        for agent in self.agents:  # spread over the period, as hosts that started at different moments are
            heapq.heappush(
                self._reports, (clock() + self.period * (agent.number + 1) / fleet.hosts, next(self._order), agent.number)
            )
        self._joining: dict[int, float] = {}  # process -> when it joined
        self._assigned: dict[int, m.Assign] = {}
        self._formed = 0
        self._before: dict[int, int] = {}  # host -> the one before it in the ring, whose states it holds too; -1: the last
        self._held: dict[int, list[int]] = {}  # host -> ranks on it in the last generation that was formed
        self._asked = (0, -1, -1)  # generation, step and attempt of the last bad step
        self._commands: list[tuple[str, p.Command]] = []
        self.finished = -1

    # -- time -----------------------------------------------------------------------------------------------------------

    def advance(self, now: float) -> None:
        """All that agents and ranks do until `now`, and what of it arrives."""
        fleet = self.fleet
        fleet.advance(now)
        if fleet.finished_steps:
            self.finished = fleet.finished_steps[-1]
            self._soon(list(range(fleet.hosts)))
            for step in fleet.finished_steps:
                if step > fleet.first:
                    self._all_say_committed(step - 1)
            fleet.finished_steps.clear()
        if fleet.bad and self._asked != (fleet.running, fleet.step, fleet.attempt):
            self._asked = (fleet.running, fleet.step, fleet.attempt)
            for process in fleet.holder.tolist():
                self.say(process, m.Bad(fleet.running, fleet.step, fleet.attempt, fleet.bad))
        while self._todo and self._todo[0][0] <= now:
            heapq.heappop(self._todo)[2]()
        if self.often < self.period:
            self._report_rest(now)
        self._report(now)
        self._start_if_joined(now)
        self._deliver(now)

    def alarm(self, hosts: frozenset[int]) -> None:
        """These hosts' agents will see something unusual: they report then, and do not wait for their turn."""
        for host in hosts:
            for after in ALARM_SECONDS:
                self._later(after, lambda host=host: self._send_report([host], self.clock()))  # type: ignore[misc]

    def ended(self, process: int, status: int) -> None:
        """A process ended: its agent says so, and starts another."""
        fleet = self.fleet
        agent, slot, pid = self.agents[fleet.host[process]], int(fleet.slot[process]), int(fleet.pid[process])
        record = fleet.records(np.array([process]), self.clock()).tobytes()
        fleet.alive[process] = False
        agent.last.pop(process, None)
        tail = "" if status < 0 else "RuntimeError: simulated\n"
        self._tell(agent, lambda n: p.Exited(n, slot, pid, status, 0, "simulated", tail, record))
        self._later(RESPAWN_SECONDS, lambda: self._respawn(agent, process))

    def say(self, process: int, message: m.ToAgent) -> None:
        """A rank's message, passed on by its agent."""
        fleet = self.fleet
        agent, slot, pid = self.agents[fleet.host[process]], int(fleet.slot[process]), int(fleet.pid[process])
        agent.last.setdefault(process, {})[type(message)] = message
        agent.events += 1
        agent.gathered.append(p.FromRank(agent.events, slot, pid, message))
        if not self.gather:
            self._send_gathered(agent)
        elif len(agent.gathered) == 1:
            self._later(self.gather, lambda: self._send_gathered(agent))

    # -- commands ---------------------------------------------------------------------------------------------------------

    def send(self, host: str, command: p.Command) -> None:
        """What the conductor sends. It is obeyed once the conductor has done."""
        self._commands.append((host, command))

    def _obey(self, host: str, command: p.Command) -> None:
        agent = self.agents[self.number_of[host]]
        if agent.refused or agent.number in self.fleet.silent(self.clock()):
            return
        if isinstance(command, p.WhoAreYou):
            self._register(agent)
        elif isinstance(command, p.Prepare):
            self.fleet.stop()
            self._formed, self._joining = 0, {}
            agent.generation = command.generation
            self._tell(agent, lambda n: p.Inventory(n, command.generation, self._inventory(agent)))
        elif isinstance(command, p.Form):
            self._form(agent, command)
        elif isinstance(command, p.ToSlots):
            if isinstance(command.message, m.Decide):
                action = command.message.action
                self.fleet.decide(action, self.clock())
        elif isinstance(command, p.Dismiss):
            process = self._process(agent, command.slot, command.pid)
            if process is not None and self.fleet.alive[process]:
                self.ended(process, -signal.SIGKILL)
        elif isinstance(command, p.Refused):
            agent.refused = True

    def _process(self, agent: Agent, slot: int, pid: int) -> int | None:
        process = agent.number * self.fleet.slots + slot
        return process if self.fleet.pid[process] == pid else None

    def _form(self, agent: Agent, form: p.Form) -> None:
        fleet = self.fleet
        if form.generation != self._formed:
            self._formed, self._joining, self._assigned, self._held = form.generation, {}, {}, {}
            fleet.holder.fill(-1)
        mine = agent.number * fleet.slots + np.arange(fleet.slots)
        fleet.rank[mine], fleet.generation[mine] = -1, 0
        self._before[agent.number] = next(reversed(self._held), -1)
        self._held[agent.number] = [place.assign.rank for place in form.places]
        agent.last.clear()
        after = self.clock() + fleet.chance.uniform(*JOIN_SECONDS)
        for place in form.places:
            process = self._process(agent, place.slot, place.pid)
            if process is None or not fleet.alive[process]:
                continue
            rank = place.assign.rank
            fleet.rank[process], fleet.generation[process], fleet.holder[rank] = rank, form.generation, process
            self._assigned[process] = place.assign
            if place.assign.serve_store:
                self.say(process, m.StoreServing(form.generation, 1))
        self._later(after - self.clock(), lambda: self._join(agent, form.generation))

    def _join(self, agent: Agent, generation: int) -> None:
        """The host's ranks join, but for those that something holds."""
        fleet, now = self.fleet, self.clock()
        if generation != self._formed or agent.number in fleet.silent(now):
            return
        held = {
            int(process)
            for strike in fleet.strikes
            if (strike.effects.halts == "local" or not strike.effects.heart) and strike.strength(now)
            for process in strike.processes
        }
        for process in range(agent.number * fleet.slots, (agent.number + 1) * fleet.slots):
            assign = self._assigned.get(process)
            if assign is not None and process not in held and fleet.alive[process]:
                self._joining[process] = now
                step = assign.resume_step + 1 if assign.resume_step >= 0 else max(self.finished, 0)
                self.say(process, m.Joined(generation, assign.rank, step))

    def _start_if_joined(self, now: float) -> None:
        fleet = self.fleet
        if not fleet.running and self._formed and len(self._joining) == fleet.world:
            resume = next(iter(self._assigned.values())).resume_step
            fleet.start(self._formed, resume + 1 if resume >= 0 else max(self.finished, 0), now)
            self._joining = {}

    def _inventory(self, agent: Agent) -> list[p.ShardInfo]:
        """Its own ranks' last two states, and those of the host before it in the ring."""
        if self.finished < 0 or agent.number not in self._held:
            return []
        before = self._before[agent.number] if self._before[agent.number] >= 0 else next(reversed(self._held))
        ranks = self._held[agent.number] + self._held.get(before, [])
        return [
            p.ShardInfo(rank, step, 1 << 30, "simulated")
            for step in (self.finished - 1, self.finished)
            if step >= 0
            for rank in ranks
        ]

    def _register(self, agent: Agent) -> None:
        fleet = self.fleet
        processes = [
            p.ProcessState(
                int(fleet.slot[process]), int(fleet.pid[process]), bool(fleet.ready[process]), int(fleet.generation[process]),
                int(fleet.rank[process]), list(agent.last.get(process, {}).values()),
            )
            for process in range(agent.number * fleet.slots, (agent.number + 1) * fleet.slots)
            if fleet.alive[process]
        ]  # fmt: skip
        self._send_gathered(agent)
        self._post(agent, p.Register("10.0.0.1", 1, agent.generation, processes, agent.events))

    def _respawn(self, agent: Agent, process: int) -> None:
        if agent.refused:
            return
        slot, pid = int(self.fleet.slot[process]), self.fleet.restart(process)
        self._tell(agent, lambda n: p.Started(n, slot, pid))
        self.fleet.ready[process] = True
        self.say(process, m.Ready())

    # -- messages ---------------------------------------------------------------------------------------------------------

    def _later(self, after: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._todo, (self.clock() + after, next(self._order), act))

    def _send_gathered(self, agent: Agent) -> None:
        gathered, agent.gathered = agent.gathered, []
        if gathered:
            self._post(agent, gathered[0] if len(gathered) == 1 else p.Several(gathered))

    def _tell(self, agent: Agent, make: Callable[[int], p.Event]) -> None:
        self._send_gathered(agent)
        agent.events += 1
        self._post(agent, make(agent.events))

    def _all_say_committed(self, step: int) -> None:
        """One rank of each host that speaks says so; what others say goes no further."""
        fleet = self.fleet
        hosts, first = np.unique(fleet.host[fleet.holder], return_index=True)
        for host, rank in zip(hosts.tolist(), first.tolist(), strict=True):
            if host in self._speakers:
                self.say(int(fleet.holder[rank]), m.Committed(fleet.running, step))

    def _report_rest(self, now: float) -> None:
        """Hosts all of whose ranks have done their own work of this step say so, between their reports now and then."""
        fleet = self.fleet
        if not fleet.running:
            return
        rest = np.zeros(fleet.hosts)
        np.maximum.at(rest, fleet.host[fleet.holder], fleet.begun + fleet.local)
        due = np.flatnonzero((rest + AT_REST <= now) & (self._told_rest != fleet.step))
        self._told_rest[due] = fleet.step
        self._soon(due.tolist())

    def _soon(self, hosts: list[int]) -> None:
        """They report now, where agents look that often."""
        if hosts and self.often < self.period:
            self._send_report(hosts, self.clock())

    def _report(self, now: float) -> None:
        due = []
        while self._reports and self._reports[0][0] <= now:
            at, _, host = heapq.heappop(self._reports)
            due.append(host)
            heapq.heappush(self._reports, (at + self.period, next(self._order), host))
        if due:
            self._send_report(list(dict.fromkeys(due)), now)  # who is late by several periods reports once

    def _send_report(self, hosts: list[int], now: float) -> None:
        fleet = self.fleet
        slots = np.arange(fleet.slots)
        processes = (np.array(hosts)[:, None] * fleet.slots + slots).ravel()
        processes = processes[fleet.alive[processes]]
        rows = np.zeros(len(processes), ROW_TYPE)
        rows["record"], rows["whole"] = fleet.records(processes, now), True
        rows["age"], rows["cpu"] = now - fleet.last_beat(processes, now), fleet.cpu_seconds(processes, now)
        rows["still"], rows["slot"], rows["pid"] = fleet.still(processes, now), fleet.slot[processes], fleet.pid[processes]
        rows["state"] = [ord(letter) for letter in fleet.letters(processes, now)]
        raw = rows.tobytes()
        counts = np.bincount(fleet.host[processes], minlength=fleet.hosts)[hosts] * ROW_TYPE.itemsize
        ends = np.cumsum(counts)
        for host, begin, end in zip(hosts, (ends - counts).tolist(), ends.tolist(), strict=True):
            agent = self.agents[host]
            if not agent.refused:
                self._send_gathered(agent)
                late = fleet.late(host, now)
                self._post(agent, p.Report(agent.events, agent.controller, agent.command, late, raw[begin:end]))

    def _post(self, agent: Agent, message: p.ToController) -> None:
        fleet, now = self.fleet, self.clock()
        c = fleet.conditions
        if agent.number in fleet.silent(now) or (c.lost and fleet.chance.random() < c.lost):
            return
        late = LATENCY + (fleet.chance.uniform(0.0, c.delay) if c.delay else 0.0)
        agent.delivered = max(agent.delivered, now + late)
        heapq.heappush(self._mail, (agent.delivered, next(self._order), agent.name, _encoder.encode(message)))

    def _arrived(self, now: float) -> list[tuple[str, bytes]]:
        """Hosts and bodies of the messages whose time on the way is over."""
        arrived = []
        while self._mail and self._mail[0][0] <= now:
            _, _, host, body = heapq.heappop(self._mail)
            arrived.append((host, body))
            self.bytes += len(body)
        self.messages += len(arrived)
        return arrived

    def _deliver(self, now: float) -> None:
        """The controller's part: decoding and taking in. Its processor time is counted."""
        assert self.conductor is not None
        arrived = self._arrived(now)
        begin = time.process_time()
        for host, body in arrived:
            self.conductor.handle(host, _decoder.decode(body))
        self.conductor.tick()
        self.spent += time.process_time() - begin
        commands, self._commands = self._commands, []
        for host, command in commands:
            self._obey(host, command)
