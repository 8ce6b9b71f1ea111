"""One rank's own work takes longer than its peers', step after step. Waiting does not count: in the victims it points away.

Two clocks, because each is blind to something: processor time does not see a process that is kept from running, wall time on
busy cores hides extra work in everybody's noise (1.2 x extra work read 1.08 on the wall and 1.18 in processor time). But extra
work must show on the wall at least a little: where only the processor clock differs, the peers were kept from running. A real
rank's wall time is without its time in line for a processor (probe/clock.py): whoever takes its processor is no fault of it.

Peers are ranks that do the same work: of the kinds of groups that a rank is in, the one whose members' times are most alike.

How much slower is too slow: `slow_ratio` over a few steps. Over more of them less is enough, down to LOWEST, where the fleet is
calm: the excess must be SIGMAS times what ranks differ by anyway.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ninthsky.evidence import Fact
from ninthsky.guard.controller.fleet import STEPS, Floats, Ints, Times, Window
from ninthsky.guard.judges.hang import SETTLING_STEPS
from ninthsky.guard.judges.verdict import Limits, Verdict

PERSISTENCE = 0.75  # share of the steps in which the rank itself must exceed the threshold
CLOSE_PERSISTENCE = 0.85  # the same on the wall clock where less than slow_ratio is enough: neighbours' spells come this near
WALL_PATIENCE = 2  # on the wall clock alone it must last so many times longer: a neighbour's noise comes and goes
ECHO = 0.25  # share of the ratio's excess over 1 that the wall must show for extra processor time
FLOOR_MS = 1.0  # medians under this say nothing
PEERS = 4  # fewest members of a group that is compared within; else the whole fleet is
FEW = 16  # with fewer ranks, how much they differ is known badly: their largest difference counts, not a typical one
TAIL, TAIL_SIGMAS = 0.99, 2.33  # this quantile of a normal distribution is so many standard deviations above its mean
LOWEST = 1.12  # less is never slow: batches, caches and layouts differ by so much
PATIENT, PATIENT_OF_FEW = 2, 4  # times slow_steps, from which on less than slow_ratio is enough
ONE_IN = 8  # of so many ranks one can be slow: of four, two that are slow leave nobody to compare with
SIGMAS = 6.0  # a rank's ratio must be so many times the fleet's own spread over 1: of thousands, one is always the slowest
CLEARLY = 0.7  # of the whole fleet's spread: members of a group differ by less, or the group says nothing of its own
MANY = 4  # slow ranks at once; more are no cards
BLOCK = 8  # steps whose mean is looked at, for a rank that is stopped now and then: in most single steps it is as quick as any
MATES = 0.4  # share of a rank's excess that the others of its host show: then it is the host's neighbour that takes time


class Reading(NamedTuple):
    """One clock over some steps, of one rank: its median against its peers', the margin to the next slowest rank."""

    clock: str
    steps: int
    rank: int
    ratio: float
    margin: float
    share: float  # of steps in which it exceeded half of what is too slow
    limit: float  # from which ratio on it is too slow
    persistence: float = PERSISTENCE
    of: int = 1  # steps that one time is the mean of

    @property
    def stands_out(self) -> bool:
        return self.ratio >= self.limit and self.margin >= _apart(self.limit) and self.share >= self.persistence

    @property
    def facts(self) -> tuple[Fact, ...]:
        source = f"{self.clock} clock, median of {self.steps} {'steps' if self.of == 1 else f'means of {self.of} steps'}"
        return (
            Fact("local time against the peers' median", self.ratio, self.limit, "x", source),
            Fact("local time against the second slowest", self.margin, _apart(self.limit), "x", source),
            Fact(f"share of steps over {_apart(self.limit):.3g}", self.share, self.persistence, "", source),
        )


class Clock:
    """One clock's times [ranks, steps] in milliseconds, of all ranks and each against its own peers."""

    def __init__(self, name: str, times: Times, groups: Ints, limits: Limits) -> None:
        """`groups` [ranks, columns]: numbers of the groups that a rank is in, -1 for none."""
        self.name, self.times, self.steps = name, times, times.shape[1]
        self.medians = np.median(times, axis=1).astype(np.float64)
        self._column, normal = _most_alike(self.medians, groups)
        self._groups = groups
        self.ratio = self.medians / np.maximum(normal, 1e-9)
        self.most = max(1, min(len(self.ratio) // ONE_IN, MANY))
        few = len(self.ratio) < FEW
        self.spread = 1.4826 * float(np.median(np.abs(self.ratio - 1)))
        self.patience = limits.slow_steps * (PATIENT_OF_FEW if few else PATIENT)
        self.limit, self.persistence = max(limits.slow_ratio, 1 + SIGMAS * self.spread), PERSISTENCE
        if self.steps >= self.patience:
            rest = np.sort(self.ratio)[: -self.most]  # all but those that may be slow
            tail = (
                np.abs(rest - 1).max() if few else (np.quantile(rest, TAIL) - 1) / TAIL_SIGMAS
            )  # noise slows more than it speeds
            self.spread = max(self.spread, float(tail))
            self.limit = min(self.limit, max(LOWEST, 1 + SIGMAS * self.spread))
            if self.limit < limits.slow_ratio and name == "wall":
                self.persistence = CLOSE_PERSISTENCE

    def peers(self, rank: int) -> Times:
        """Times of the ranks that this one is compared with, its own among them."""
        column = self._column[rank]
        return self.times if column < 0 else self.times[self._groups[:, column] == self._groups[rank, column]]

    def slowest(self) -> list[Reading]:
        """The slowest rank, or as many as stand apart from all others together; their share of steps is counted."""
        top = np.argsort(self.ratio)[::-1][: self.most + 1]
        falls = self.ratio[top[:-1]] / self.ratio[top[1:]]
        above = np.flatnonzero((falls >= _apart(self.limit)) & (self.ratio[top[:-1]] >= self.limit))
        count = int(above[-1]) + 1 if len(above) else 1
        found = []
        for rank in map(int, top[:count]):
            share = float((self.times[rank] > _apart(self.limit) * np.median(self.peers(rank), axis=0)).mean())
            ratio, margin = float(self.ratio[rank]), float(falls[count - 1])
            found.append(Reading(self.name, self.steps, rank, ratio, margin, share, self.limit, self.persistence))
        return found


def judge_slow(window: Window, limits: Limits) -> list[Verdict]:
    """Ranks that stand out from their peers on a clock, persistently, and from the next slowest too; mostly none or one.

    Where noise is in the way, more steps are looked at, up to STEPS.
    """
    if window.ranks < 3 or window.steps_seen < limits.slow_steps + SETTLING_STEPS:
        return []  # of two, nobody can tell which one is normal
    groups = _numbered(window.record["groups"]["id"], window.hosts)
    verdicts: list[Verdict] | None = []
    for more in (1, 2, 3, 4, 6, 8):
        steps = more * limits.slow_steps
        if steps > min(STEPS, max(window.steps_seen - SETTLING_STEPS, limits.slow_steps)):
            break
        walls, cpus = window.local_wall[:, -steps:], window.local_cpu[:, -steps:]
        wall, processor = read_clock("wall", walls, groups, limits), read_clock("processor", cpus, groups, limits)
        verdicts = _judge(window, limits, wall, processor)
        if verdicts is not None:
            break
    return verdicts or _now_and_then(window, limits, groups)


def _now_and_then(window: Window, limits: Limits, groups: Ints) -> list[Verdict]:
    """Ranks that are slow on average over blocks of steps, block after block, on the wall clock."""
    if window.steps_seen < STEPS + SETTLING_STEPS:
        return []
    means = window.local_wall[:, -STEPS:].reshape(window.ranks, -1, BLOCK).mean(axis=2)
    clock = read_clock("wall", means.astype(np.float64), groups, replace(limits, slow_steps=1))
    if clock is None or clock.ratio.max() < min(LOWEST, limits.slow_ratio):
        return []
    slow = [reading._replace(of=BLOCK) for reading in clock.slowest() if reading.stands_out]
    slow = [reading for reading in slow if not _is_the_host(window, reading, clock)]
    return [verdict for r in slow if (verdict := _kept_from_running(window, r, clock, None))]


def read_clock(clock: str, times: Times, groups: Ints, limits: Limits) -> Clock | None:
    """What `times` [ranks, steps] (milliseconds) say; None while steps are missing (NaN) or too short to tell."""
    if np.isnan(times).any():
        return None
    read = Clock(clock, times, groups, limits)
    return read if float(np.median(read.medians)) >= FLOOR_MS else None


def _judge(window: Window, limits: Limits, wall: Clock | None, processor: Clock | None) -> list[Verdict] | None:
    """None: nobody stands out, and more steps might tell; an empty list: who stands out is not to blame."""
    suspicious = False
    for clock in (processor, wall):
        if clock is None or clock.ratio.max() < min(LOWEST, limits.slow_ratio):
            continue
        suspicious = True
        enough = limits.slow_steps * WALL_PATIENCE if clock.limit >= limits.slow_ratio else clock.patience * 3 // 2
        if clock is wall and clock.steps < enough:
            continue
        slow = [reading for reading in clock.slowest() if reading.stands_out]
        if not slow:
            continue
        slow = [reading for reading in slow if not _is_the_host(window, reading, clock)]
        if clock is processor:
            return [verdict for r in slow if (verdict := _more_work(window, r, wall))]
        return [verdict for r in slow if (verdict := _kept_from_running(window, r, clock, processor))]
    return None if suspicious else []


def _more_work(window: Window, reading: Reading, wall: Clock | None) -> Verdict | None:
    rank = reading.rank
    if wall is None or wall.ratio[rank] < 1 + ECHO * (reading.limit - 1):
        return None  # its peers used less processor time because they were kept from running
    on_wall = [r for r in wall.slowest() if r.rank == rank and r.stands_out]
    if not on_wall and window.ranks < ONE_IN and wall.ratio.argmax() != rank:
        return None
    text = "its own work takes longer on the processor clock" + (" and on the wall clock" if on_wall else "")
    ruled_out = "a neighbour that takes its processor: the rank itself used more processor time"
    seen = Fact("wall clock against the peers' median", float(wall.ratio[rank]), unit="x")
    facts = reading.facts + (on_wall[0].facts if on_wall else (seen,))
    return _verdict(window, rank, text, facts, ruled_out, 0.95 if on_wall else 0.85)


def _kept_from_running(window: Window, reading: Reading, wall: Clock, processor: Clock | None) -> Verdict | None:
    rank = reading.rank
    mates = _mates(window, rank)
    facts = reading.facts
    if len(mates):
        limit = 1 + MATES * (reading.ratio - 1)
        facts += (Fact("wall clock of the others on its host", float(np.median(wall.ratio[mates])), limit, "x"),)
    if processor is not None:
        facts += (Fact("its processor time against the peers' median", float(processor.ratio[rank]), processor.limit, "x"),)
    text = "its own work takes longer on the wall clock only: it is kept from running"
    return _verdict(window, rank, text, facts, "more work or a slower core: its processor time is as its peers'", 0.75)


def _is_the_host(window: Window, reading: Reading, clock: Clock) -> bool:
    """Whether several of its host are slow too: other work on the host, or the host itself, and no card's fault."""
    mates = clock.ratio[_mates(window, reading.rank)]
    return len(mates) >= 3 and int((mates >= 1 + MATES * (reading.ratio - 1)).sum()) >= 2


def _mates(window: Window, rank: int) -> Ints:
    return np.array([mate for mate, host in enumerate(window.hosts) if host == window.hosts[rank] and mate != rank], np.int64)


def _apart(threshold: float) -> float:
    """How far the slowest must be from the second slowest: half the way to the threshold."""
    return 1 + (threshold - 1) / 2


def _verdict(window: Window, rank: int, text: str, facts: tuple[Fact, ...], ruled_out: str, confidence: float) -> Verdict:
    waiting = window.record["communication"]
    if window.known.all() and waiting.max() > 0:
        typical = float(np.median(waiting))
        facts += (
            Fact("its time in collectives", float(waiting[rank]), typical, "ms", "a slow rank waits less than its peers"),
        )
    noise = f"noise: it exceeded the threshold in at least {PERSISTENCE:.0%} of the steps, well apart from the second slowest"
    return Verdict("slow", (rank,), text, facts, (ruled_out, noise), confidence)


# -- peers ----------------------------------------------------------------------------------------------------------------


def _numbered(ids: NDArray[np.uint64], hosts: tuple[str, ...]) -> Ints:
    """Ids of groups [ranks, columns] as numbers from 0; -1 where there is none, where too few have it, and where all of it are
    on one host: what troubles a host troubles all of them."""
    used = ids[:, (ids != 0).any(axis=0)]
    names, number, count = np.unique(used, return_inverse=True, return_counts=True)
    kept = (names != 0) & (count >= PEERS)
    of_host = np.repeat(_host_numbers(hosts), used.shape[1])
    first, last = np.full(len(names), len(hosts)), np.full(len(names), -1)
    np.minimum.at(first, number.ravel(), of_host)
    np.maximum.at(last, number.ravel(), of_host)
    kept &= first < last
    return np.where(kept[number], number, -1).reshape(used.shape)


def _host_numbers(hosts: tuple[str, ...]) -> Ints:
    number = {host: at for at, host in enumerate(dict.fromkeys(hosts))}
    return np.array([number[host] for host in hosts])


def _most_alike(medians: Floats, groups: Ints) -> tuple[Ints, Floats]:
    """For each rank the column of the group that it is compared within, -1 for the whole fleet; and that group's median.

    The first of its columns by how much members differ (median absolute deviation, relative), over all groups of a column: by
    its own four members' figures alone, a group of unequal stages is alike by chance now and then, and somebody is blamed.
    """
    best = np.full(len(medians), -1)
    normal = np.full(len(medians), max(float(np.median(medians)), 1e-9))
    spread = float(np.median(np.abs(medians / normal - 1)))
    columns: list[tuple[float, int, Ints, Floats]] = []
    for number, column in enumerate(groups.T):
        inside = np.flatnonzero(column >= 0)
        if not len(inside):
            continue
        middle = np.maximum(_group_medians(medians[inside], column[inside]), 1e-9)
        within = float(np.median(np.abs(medians[inside] / middle - 1)))
        if within < CLEARLY * spread:
            columns.append((within, number, inside, middle))
    for _, number, inside, middle in sorted(columns, key=lambda column: column[0], reverse=True):
        best[inside], normal[inside] = number, middle
    return best, normal


def _group_medians(values: Floats, group: Ints) -> Floats:
    """Of each entry, the median of its group's values. `group`: from 0, under 65,536."""
    order = np.argsort(group.astype(np.uint16), kind="stable")  # by digits, ten times as fast as by value and group at once
    starts = np.flatnonzero(np.r_[True, np.diff(group[order]) != 0])
    counts = np.diff(np.r_[starts, len(group)])
    if (counts == counts[0]).all():
        middle = np.median(values[order].reshape(-1, counts[0]), axis=1)
    else:
        inner = values[np.lexsort((values, group))]
        middle = 0.5 * (inner[starts + (counts - 1) // 2] + inner[starts + counts // 2])
    medians = np.empty(len(values))
    medians[order] = np.repeat(middle, counts)
    return medians
