"""A fleet that trains, in numpy: processes with records as real ranks write them, and faults by their effects on these.

It knows nothing of controllers and judges. What is simple in it: all ranks step together, one after the other enters a step's
collectives in the order tp, pp, ep, dp, gate (each group one communicator, a pipeline's too), whoever has done its own work
is next seen at the gate. When a rank stays somewhere, who stays where because of it is worked out group by group.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ninthsky.guard.controller.fleet import RECORD_TYPE
from ninthsky.guard.drill.noise import Noise
from ninthsky.guard.drill.scenario import GROUPS, Conditions, Effects
from ninthsky.guard.probe.record import Phase, group_id

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PER_HOST = 8
OPS = {"tp": 16, "pp": 8, "ep": 16, "dp": 4, "gate": 1}  # collectives of a step
LOCAL_MS, CPU_SHARE, COMMUNICATION = 1_400.0, 0.35, 0.6  # a rank's own work on the wall, of that on the processor; seconds
BEAT = 0.1
FREE, LOCAL = -1, 0  # of `stays`: not at all, in its own work; 1 to 5: in that group's collective


class Layout:
    """Which groups each rank is in: tp within a host, dp across, pp over the stages, ep within dp. Arrays [ranks]."""

    def __init__(self, world: int) -> None:
        tp = PER_HOST
        hosts = world // tp
        pp = next(size for size in (8, 4, 2, 1) if (hosts % size == 0 and hosts // size >= 4) or size == 1)
        dp = hosts // pp
        ep = next(size for size in (32, 16, 12, 8, 6, 4, 3, 2, 1) if dp % size == 0)
        rank = np.arange(world)
        column, at, stage = rank % tp, rank // tp % dp, rank // (tp * dp)
        self.sizes = {"tp": tp, "pp": pp, "ep": ep, "dp": dp, "gate": world}
        self.stage, self.stages = stage, pp
        self.group: dict[str, Ints] = {
            "tp": rank // tp,
            "pp": column + tp * at,
            "ep": column + tp * (at // ep + (dp // ep) * stage),
            "dp": column + tp * stage,
            "gate": np.zeros(world, np.int64),
        }
        self.ids = np.zeros((world, len(GROUPS)), np.uint64)
        for number, name in enumerate(GROUPS):
            members = self.group[name]
            ids = np.array([group_id(f"{name}-{group}") for group in range(int(members.max()) + 1)], np.uint64)
            self.ids[:, number] = ids[members] if self.sizes[name] > 1 else 0


@dataclass
class Strike:
    """One fault at work: `processes` and `hosts` are those that it strikes."""

    effects: Effects
    processes: Ints
    hosts: frozenset[int]
    begin: float
    done_once: bool = field(default=False)

    def strength(self, now: float) -> float:
        """0: away; 1: all of it."""
        e, since = self.effects, now - self.begin
        if since < 0 or (e.lasts and since > e.lasts) or (e.on and since % (e.on + e.off) > e.on):
            return 0.0
        return min(1.0, since / e.grows) if e.grows else 1.0


class SimulatedFleet:
    """`world` ranks on hosts of PER_HOST cards and `spares` each. Processes are numbered host by host, slot by slot."""

    def __init__(
        self,
        world: int,
        spares: int,
        noise: Noise,
        conditions: Conditions,
        chance: np.random.Generator,
        pace: float = 1.0,
    ) -> None:
        self.pace = pace  # factor on the times of steps
        self.layout, self.noise, self.conditions, self.chance = Layout(world), noise, conditions, chance
        self.world, self.slots = world, PER_HOST + spares
        self.hosts = world // PER_HOST
        count = self.hosts * self.slots
        self.host = np.repeat(np.arange(self.hosts), self.slots)
        self.slot = np.tile(np.arange(self.slots), self.hosts)
        self.pid = np.arange(count) + 1000
        self._next_pid = 1000 + count
        self.alive = np.ones(count, bool)
        self.ready = np.ones(count, bool)
        self.rank = np.full(count, -1)
        self.generation = np.zeros(count, np.int64)
        self.sequence = np.zeros(count, np.int64)
        self.cpu = np.zeros(count)
        self.skew = chance.uniform(-conditions.skew, conditions.skew, self.hosts)
        self.stage_work = chance.uniform(0.85, 1.0, self.layout.stages)
        self.holder = np.full(world, -1)  # process of each rank
        self.strikes: list[Strike] = []
        self.neighbours = self._draw_neighbours()
        self.running = 0  # generation that trains, 0: none
        self.step = self.first = self.attempt = 0
        self.begun = 0.0
        self.local = np.zeros(world)  # this step's own work, seconds
        self.local_cpu = np.zeros(world)
        self.last_local, self.last_cpu = np.zeros(world), np.zeros(world)
        self.stays = np.full(world, FREE)
        self.odd = np.zeros((world, len(GROUPS)), bool)  # entered another collective
        self.end = np.inf  # of this step
        self.bad: list[int] = []  # ranks with a bad gradient in this step; all wait for a decision
        self.finished_steps: list[int] = []

    # -- what is done to it ---------------------------------------------------------------------------------------------

    def start(self, generation: int, step: int, now: float) -> None:
        """All ranks of a generation are there and begin with `step`."""
        self.running, self.first, self.attempt = generation, step, 0
        self._begin_step(step, now)

    def stop(self) -> None:
        """The groups were let go of."""
        self.running = 0

    def strike(self, strike: Strike, now: float) -> None:
        self.strikes.append(strike)
        if self.running and strike.effects.exit is not None:
            self.alive[strike.processes] = False
        self._reckon(now)

    def heal(self, now: float) -> None:
        """All strikes end; what they ended stays ended."""
        self.strikes.clear()
        self._reckon(now)

    def restart(self, process: int) -> int:
        """A new process in the slot. Returns its process id."""
        self.pid[process] = self._next_pid
        self._next_pid += 1
        self.alive[process], self.ready[process] = True, False
        self.rank[process], self.generation[process], self.cpu[process] = -1, 0, 0.0
        return int(self.pid[process])

    def decide(self, action: str, now: float) -> None:
        """What to do about a bad step."""
        if self.bad:
            self.bad = []
            self.attempt += 1
            self._begin_step(self.step, now)

    # -- time -------------------------------------------------------------------------------------------------------------

    def advance(self, now: float) -> None:
        """Goes on to `now`; steps that ended are in `finished_steps`."""
        if self.strikes and self.running:
            self._reckon(now)
        while self.running and self.end <= now and not self.bad:
            struck = [s for s in self.strikes if s.effects.nonfinite and not s.done_once]
            if struck:
                ranks = self.rank[np.concatenate([s.processes for s in struck])]
                self.bad = sorted(int(rank) for rank in ranks if rank >= 0)
                for strike in struck:
                    strike.done_once = True
                if self.bad:
                    return
            self.cpu[self.holder] += self.local_cpu / 1e3
            self.finished_steps.append(self.step)
            self.attempt = 0
            self.last_local, self.last_cpu = self.local * 1e3, self.local_cpu
            self._begin_step(self.step + 1, self.end)

    def _begin_step(self, step: int, now: float) -> None:
        self.step, self.begun = step, now
        wall, cpu = self.noise.draw(self.chance, self.world)
        wall, cpu = 1 + (wall - 1) * self.conditions.noise, 1 + (cpu - 1) * self.conditions.noise
        work = self.stage_work[self.layout.stage] * LOCAL_MS * self.pace
        stalls = 0.0
        for strike in self.strikes:
            strength = strike.strength(now)
            ranks = self.rank[strike.processes]
            ranks = ranks[ranks >= 0]
            wall[ranks] *= 1 + (strike.effects.wall - 1) * strength
            cpu[ranks] *= 1 + (strike.effects.cpu - 1) * strength
            stalls = max(stalls, strike.effects.stalls * strength)
        if len(self.neighbours):
            on = self.neighbours[(now / 20.0 + self.neighbours * 0.37) % 1.0 < 0.4]  # eight seconds of twenty
            troubled = self.rank[np.isin(self.host, on) & (self.slot % 2 == 0)]
            wall[troubled[troubled >= 0]] *= 1.25
        self.local = np.maximum(wall, 0.2) * work / 1e3
        self.local_cpu = np.maximum(cpu, 0.2) * work * CPU_SHARE
        self.stays.fill(FREE)
        self.odd.fill(False)
        self.end = now + float(self.local.max()) + COMMUNICATION * self.pace + stalls
        if self.strikes:
            self._reckon(now)

    def _reckon(self, now: float) -> None:
        """Who stays where in this step, and whether it ends."""
        if not self.running:
            return
        stays, odd = np.full(self.world, FREE), np.zeros((self.world, len(GROUPS)), bool)
        held: list[tuple[int, Ints, bool]] = []
        for strike in self.strikes:
            e = strike.effects
            if not strike.strength(now):
                continue
            ranks = self.rank[strike.processes]
            ranks = ranks[ranks >= 0]
            # Who had done its own work when it was struck goes through with this step, and stays in the next.
            ranks = ranks[(self.begun + self.local[ranks] > strike.begin) | (self.stays[ranks] != FREE)]
            if e.halts == "local" or e.exit is not None:
                stays[ranks] = LOCAL
            elif e.halts:
                held.append((1 + GROUPS.index(e.halts), ranks, e.whole_group))
            if e.other_op:
                number = GROUPS.index(e.other_op)
                odd[ranks, number] = True
                held.append((1 + number, ranks, True))
        stays[(self.holder < 0) | ~self.alive[self.holder]] = LOCAL
        for number, name in enumerate(GROUPS, 1):
            group = self.layout.group[name]
            blocked = np.zeros(int(group.max()) + 1, bool)
            blocked[group[(stays != FREE) & (stays < number)]] = True
            inside = blocked[group] & (stays == FREE)
            for at, ranks, whole in held:
                if at == number and len(ranks):
                    inside |= (np.isin(group, group[ranks]) if whole else np.isin(np.arange(self.world), ranks)) & (
                        stays == FREE
                    )
            stays[inside] = number
        was_held = not np.isfinite(self.end)
        self.stays, self.odd = stays, odd
        if (stays != FREE).any():
            self.end = np.inf
        elif was_held:
            self.end = max(now, self.begun + float(self.local.max())) + COMMUNICATION * self.pace

    def _draw_neighbours(self) -> Ints:
        count = round(self.conditions.neighbours * self.hosts)
        return np.sort(self.chance.choice(self.hosts, count, replace=False)).astype(np.int64)

    # -- what agents see --------------------------------------------------------------------------------------------------

    def records(self, processes: Ints, now: float) -> NDArray[np.void]:
        """Records of processes [n] as they stand in shared memory."""
        record = np.zeros(len(processes), RECORD_TYPE)
        self.sequence[processes] += 2
        rank = self.rank[processes]
        record["sequence"], record["rank"] = self.sequence[processes], rank
        record["generation"], record["step"] = self.generation[processes], -1
        record["phase"] = np.where(self.ready[processes], Phase.WAIT, Phase.START)
        record["heartbeat"] = self.last_beat(processes, now) + self.skew[self.host[processes]]
        placed = np.flatnonzero(rank >= 0)
        record["phase"][placed] = Phase.JOIN
        training = placed[self.generation[processes[placed]] == self.running] if self.running else placed[:0]
        if len(training):
            self._fill(record, training, rank[training], now)
        return record

    def _fill(self, record: NDArray[np.void], rows: Ints, ranks: Ints, now: float) -> None:
        worked = now >= self.begun + self.local[ranks]
        stays = self.stays[ranks]
        # 0: at work, 1 to 5: stands in that group's collective
        place = np.where(stays == FREE, np.where(worked, len(GROUPS), LOCAL), np.where(worked, stays, LOCAL))
        record["step"][rows], record["attempt"][rows] = self.step, self.attempt
        phase = np.where(place == len(GROUPS), Phase.GATE, Phase.LOCAL)
        if self.bad:
            phase[:] = Phase.VERDICT
        record["phase"][rows] = phase
        record["local_wall"][rows] = np.where(worked, self.local[ranks] * 1e3, self.last_local[ranks])
        record["local_cpu"][rows] = np.where(worked, self.local_cpu[ranks], self.last_cpu[ranks])
        wait = self.last_local.max() - self.last_local[ranks]
        record["communication"][rows] = wait + COMMUNICATION * self.pace * 1e3
        record["loss"][rows], record["grad_norm"][rows] = 2.0, 1.0
        done = self.step - self.first
        for number, name in enumerate(GROUPS):
            ids = self.layout.ids[ranks, number]
            past = place > number + 1
            here = place == number + 1
            completed = done * OPS[name] + past * OPS[name]
            groups = record["groups"][:, number]
            used = ids != 0
            groups["id"][rows] = ids
            groups["enqueued"][rows] = np.where(used, completed + here, 0)
            groups["completed"][rows] = np.where(used, completed, 0)
            groups["op"][rows] = np.where(used, 100 + number + 1000 * self.odd[ranks, number], 0)

    def last_beat(self, processes: Ints, now: float) -> Floats:
        """When each heart beat last, by one clock for all."""
        beat = now - self.chance.uniform(0.0, BEAT, len(processes))
        for strike in self.strikes:
            if not strike.effects.heart and strike.strength(now):
                beat[np.isin(processes, strike.processes)] = strike.begin
        return beat

    def still(self, processes: Ints, now: float) -> Floats:
        """Seconds since each of them last got on, as its agent has seen it: began the step, or was done with its own work."""
        rank = self.rank[processes]
        moved = np.full(len(processes), now)
        on = np.flatnonzero(rank >= 0)
        if self.running and len(on):
            done = self.begun + self.local[rank[on]]
            moved[on] = np.where((now >= done) & (self.stays[rank[on]] != LOCAL), done, self.begun)
        return now - moved

    def letters(self, processes: Ints, now: float) -> list[str]:
        letters = ["S"] * len(processes)
        for strike in self.strikes:
            if strike.effects.state and strike.strength(now):
                for at in np.flatnonzero(np.isin(processes, strike.processes)):
                    letters[at] = strike.effects.state
        return letters

    def cpu_seconds(self, processes: Ints, now: float) -> Floats:
        """Processor time so far; a process that stands still uses none."""
        seconds = self.cpu[processes].copy()
        rank = self.rank[processes]
        on = np.flatnonzero(rank >= 0)
        if self.running and len(on):
            share = np.clip((now - self.begun) / np.maximum(self.local[rank[on]], 1e-3), 0.0, 1.0)
            share[self.stays[rank[on]] == LOCAL] = 0.0
            seconds[on] += share * self.local_cpu[rank[on]] / 1e3
        return seconds

    def silent(self, now: float) -> frozenset[int]:
        """Hosts of which nothing is heard."""
        return frozenset().union(*(s.hosts for s in self.strikes if s.effects.silent and s.strength(now)))

    def late(self, host: int, now: float) -> float:
        return max((s.effects.late for s in self.strikes if host in s.hosts and s.strength(now)), default=0.0)
