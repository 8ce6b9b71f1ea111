"""A drill's faults, one after the other: drawn, struck, waited for, and what was told held against what was done.

The fleet is simulated. How the controller is reached, and what time it is, is for the subclasses to say: clocked.py has the
controller's mind within, on a made clock; sockets.py has its process at the other end of the wire, in real time.
"""

from __future__ import annotations

import math
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ninthsky.errors import UserError
from ninthsky.guard.drill import noise
from ninthsky.guard.drill.agents import Agents, host_specs
from ninthsky.guard.drill.scenario import Fault, Scenario
from ninthsky.guard.drill.simulator import PER_HOST, SimulatedFleet, Strike
from ninthsky.guard.spec import JobSpec, Watch

TICK = 0.1
RACK = 8  # hosts
MOST_RANKS = 65_536  # three and a half of the fleets that this is for; beyond, memory and time grow without a use
SLOW_RATIO = 1.5  # the default: what is 1.2 x slow is found where the fleet is calm
PATIENCE = {"slow": 120.0, "stuck": 60.0, "unknown": 40.0}  # seconds until a fault counts as missed; others 30
SETTLED = (4, 12)  # steps of a generation before the next fault
EVICTS = frozenset({"exit", "frozen", "stuck", "host", "slow", "nonfinite", "outlier"})

OVER = frozenset({"done", "failed"})

Subject = int | frozenset[str]  # a rank, or hosts


@dataclass
class Told:
    """A verdict of the controller."""

    at: float
    cause: str
    subject: Subject | None
    confidence: float
    evicts: bool


@dataclass
class Outcome:
    """One struck rank, or one struck set of hosts: what was told of it."""

    name: str
    measure: str
    result: str  # exact, unknown, wrong, missed
    seconds: float | None = None  # from the strike to its name
    evicted_wrongly: int = 0
    told: list[str] = field(default_factory=list)


class Drill(ABC):
    """One job after another on a simulated fleet. `pace` is a factor on the times of its steps.

    Raises UserError N9-GRD-041 for a size that the simulator does not have.
    """

    faults_per_job = 40
    pace = 1.0
    fleet: SimulatedFleet
    agents: Agents

    def __init__(self, ranks: int, scenario: Scenario, seed: int, on_told: Callable[[str], None] = lambda _: None) -> None:
        if ranks % PER_HOST or not 4 * PER_HOST <= ranks <= MOST_RANKS:
            raise UserError(
                "N9-GRD-041",
                f"{ranks} ranks",
                "n9 guard drill --ranks",
                f"{4 * PER_HOST} to {MOST_RANKS:,}, and {PER_HOST} on every host",
            )
        self.ranks, self.scenario, self.on_told = ranks, scenario, on_told
        self.hosts = ranks // PER_HOST
        self.rack = RACK if self.hosts >= 8 * RACK else 2
        self.spares = 1 if self.hosts >= 16 * RACK else 3
        self.chance = np.random.default_rng(seed)
        self.noise = noise.recorded()
        self.outcomes: list[Outcome] = []
        self.told: list[Told] = []
        self.simulated = self.spent = 0.0  # seconds; processor seconds of the controller
        self.bytes = 0
        self.memory_mb = 0.0  # of the controller
        self.now = 0.0  # seconds of this drill's clock

    # -- jobs -------------------------------------------------------------------------------------------------------------

    def run(self, faults: int, seconds: float = math.inf) -> None:
        """Strikes so many times, or until so many simulated seconds are over; `outcomes` has what came of it."""
        kinds = self._draw(faults)
        while kinds and self.simulated < seconds:
            with tempfile.TemporaryDirectory(prefix="n9-drill-") as folder:
                self._start(Path(folder))
                struck, last = 0, self.now + seconds - self.simulated
                while (
                    kinds
                    and struck < self.faults_per_job
                    and self.now < last
                    and self._enough_spares()
                    and self._stage() not in OVER
                ):
                    self._episode(kinds.pop(0))
                    struck += 1
                self._end()

    def _draw(self, faults: int) -> list[Fault]:
        kinds = self.scenario.fault
        if self.scenario.order == "given":
            return [kinds[number % len(kinds)] for number in range(faults)]
        weights = np.array([kind.weight for kind in kinds])
        return [kinds[int(at)] for at in self.chance.choice(len(kinds), faults, p=weights / weights.sum())]

    def spec(self, folder: Path) -> JobSpec:
        """The simulated job: it may do what it likes about faults."""
        return JobSpec(
            run_id="drill",
            folder=str(folder),
            command=["simulated"],
            world=self.ranks,
            hosts=host_specs(self.hosts, self.spares),
            watch=Watch(
                action="act",
                selftest="off",
                max_evictions_per_hour=10**9,
                card_failures=10**6,
                slow_ratio=SLOW_RATIO,
                join_seconds=20.0,
            ),
        )

    def _new_fleet(self) -> SimulatedFleet:
        return SimulatedFleet(self.ranks, self.spares, self.noise, self.scenario.conditions, self.chance, self.pace)

    @abstractmethod
    def _start(self, folder: Path) -> None:
        """A job begins to train. Sets `fleet` and `agents`."""

    @abstractmethod
    def _end(self) -> None:
        """The job ends; what it cost is added up."""

    @abstractmethod
    def _tick(self) -> None:
        """One TICK later."""

    @abstractmethod
    def _stage(self) -> str:
        """The job's, as the controller has it."""

    @abstractmethod
    def _lost(self) -> set[int]:
        """Hosts that the controller lost."""

    @abstractmethod
    def _stop(self, reason: str) -> None:
        """The job is given up."""

    def _enough_spares(self) -> bool:
        lost = len(self._lost())
        return (self.hosts - lost) * self.spares - lost * PER_HOST >= (self.rack + 1) * PER_HOST

    def _until(self, there: Callable[[], bool], limit: float) -> bool:
        end = self.now + limit
        while not there() and self.now < end and self._stage() not in OVER:
            self._tick()
        return there()

    # -- one fault --------------------------------------------------------------------------------------------------------

    def _episode(self, kind: Fault) -> None:
        fleet = self.fleet
        self._settle(int(self.chance.integers(*SETTLED)))
        self.told.clear()
        begin = self.now
        struck = self._strike(kind, set())
        second = self.scenario.named(kind.also) if kind.also else None
        if second is not None and kind.also_when == "now":
            struck += self._strike(second, {subject for _, subject in struck if isinstance(subject, int)})
        elif second is not None:
            self._until(lambda: bool(self.told), self._patience(kind))
            self._until(lambda: self._stage() == "form", 10.0)
            struck += self._strike(second, {subject for _, subject in struck if isinstance(subject, int)})
        named = sum(fault.expect not in {"unknown", "nothing"} for fault, _ in struck)
        limit = max(self._patience(fault) for fault, _ in struck)
        if kind.effects.lasts:
            self._until(lambda: False, kind.effects.lasts + 5.0)
        elif named:
            self._until(lambda: len(self.told) >= named, limit)
        else:
            self._until(lambda: bool(self.told), limit)
        self._judge_episode(kind.name, struck, begin)
        fleet.heal(self.now)
        if not self._until(lambda: self._stage() == "run" and fleet.running > 0, 120.0):
            self._stop("the drill's job did not come back")

    def _settle(self, steps: int) -> None:
        fleet = self.fleet
        self._until(lambda: fleet.running > 0 and fleet.step >= fleet.first + steps, 60.0 + 10.0 * steps)
        if self.chance.random() < 0.7:  # at any moment of a step
            self._until(lambda: False, float(self.chance.uniform(0.0, 2.0)))

    def _strike(self, kind: Fault, taken: set[int]) -> list[tuple[Fault, Subject]]:
        """Strikes; returns who."""
        fleet, chance, e = self.fleet, self.chance, kind.effects
        lost = self._lost()
        live = np.array([host for host in range(self.hosts) if host not in lost])
        subjects: list[tuple[Fault, Subject]] = []
        if kind.who == "fleet":
            groups = [live]
        elif kind.who == "hosts":
            groups = [chance.choice(live, min(kind.count, len(live) - 1), replace=False)]
        elif kind.who == "racks":
            racks = self.hosts // self.rack
            groups = [live[live % racks == rack] for rack in chance.choice(np.unique(live % racks), kind.count, replace=False)]
        else:
            free = np.array([rank for rank in range(self.ranks) if rank not in taken and fleet.alive[fleet.holder[rank]]])
            ranks = chance.choice(free, min(kind.count, len(free)), replace=False)
            processes = fleet.holder[ranks]
            fleet.strike(Strike(e, processes, frozenset(map(int, fleet.host[processes])), self.now), self.now)
            self._follow_up(e.exit, processes)
            return [(kind, int(rank)) for rank in ranks]
        for hosts in groups:
            processes = np.flatnonzero(np.isin(fleet.host, hosts))
            if e.share_of_host < 1:
                processes = processes[fleet.slot[processes] < math.ceil(e.share_of_host * PER_HOST)]
            fleet.strike(Strike(e, processes, frozenset(map(int, hosts)), self.now), self.now)
            self._follow_up(e.exit, processes)
            subjects.append((kind, frozenset(f"host-{host:04d}" for host in hosts)))
        return subjects

    def _follow_up(self, status: int | None, processes: np.ndarray) -> None:
        if status is None:
            self.agents.alarm(frozenset(map(int, self.fleet.host[processes])))
            return
        for process in processes.tolist():
            self.agents.ended(process, status)

    def _patience(self, kind: Fault) -> float:
        return PATIENCE.get(kind.expect, 30.0) + kind.effects.grows

    # -- what was told ----------------------------------------------------------------------------------------------------

    def _event(self, event: str, **fields: Any) -> None:
        if event not in {"fault.named", "fault.rung"}:
            return
        cause, rank = fields["cause"], fields["rank"]
        subject: Subject | None = frozenset(fields["host"].split(", ")) if cause == "host" else rank
        evicts = subject is not None and cause in EVICTS and "regrouped" in str(fields["remedy"]).rsplit("; then ", 1)[-1]
        if event == "fault.named" or evicts:
            self.told.append(Told(self.now, cause, subject, fields["confidence"] or 0.0, evicts))
            self.on_told(f"{fields['fault']} {fields['subject']}: {fields['verdict']}")

    def _judge_episode(self, name: str, struck: list[tuple[Fault, Subject]], begin: float) -> None:
        rest = list(self.told)
        ranks = {subject for _, subject in struck if isinstance(subject, int)}
        hosts = frozenset().union(*(subject for _, subject in struck if isinstance(subject, frozenset)))
        innocent = [told for told in rest if told.evicts and not self._guilty(told, struck, ranks, hosts)]
        words = [f"{told.cause} {told.subject} {told.at - begin:.1f} s" for told in rest]
        for number, (fault, subject) in enumerate(struck):
            if fault.expect in {"unknown", "nothing"} and any(other is fault for other, _ in struck[:number]):
                continue  # struck in many places, it is one fault
            outcome = Outcome(name, fault.measure, "missed", told=words)
            if fault.expect in {"unknown", "nothing"}:
                blamed = any(told.subject is not None for told in rest)
                spoken = [told for told in rest if told.cause == "unknown" or fault.expect == "nothing"]
                outcome.result = "wrong" if blamed else "exact"
                if fault.expect == "nothing" and rest and not blamed:
                    outcome.result = "unknown"
                outcome.seconds = spoken[0].at - begin if spoken else None
            else:
                nobody = fault.blame == "nobody"
                wanted: Subject | None = None if nobody else subject
                alike = [told for told in rest if told.cause == fault.expect]
                right = next((told for told in alike if told.subject == wanted), None)
                if right is not None:
                    rest.remove(right)
                elif isinstance(wanted, frozenset):  # racks that went together may be named as one
                    whole = (told for told in alike if isinstance(told.subject, frozenset))
                    right = next((told for told in whole if wanted <= told.subject <= hosts), None)  # type: ignore[operator]
                if right is not None:
                    outcome.result, outcome.seconds = "exact", right.at - begin
                elif any(told.subject is not None for told in rest):
                    outcome.result = "wrong"
                elif rest:
                    outcome.result = "unknown"
            self.outcomes.append(outcome)
        self.outcomes[-1].evicted_wrongly = len(innocent)
        if innocent and self.outcomes[-1].result == "exact":
            self.outcomes[-1].result = "wrong"

    @staticmethod
    def _guilty(told: Told, struck: list[tuple[Fault, Subject]], ranks: set[int], hosts: frozenset[str]) -> bool:
        if all(fault.blame == "nobody" for fault, _ in struck):
            return False
        return told.subject in ranks if isinstance(told.subject, int) else bool(told.subject and told.subject <= hosts)
