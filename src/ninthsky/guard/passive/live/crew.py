"""The ranks of one start of a job on this host, and what is remembered of them: who ended, how long they usually pause."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ninthsky.guard.passive.live.ends import Gone
from ninthsky.guard.passive.live.glances import SELDOM, Glances
from ninthsky.guard.passive.live.processes import Rank, work_of
from ninthsky.guard.passive.live.readings import Sampler
from ninthsky.guard.passive.live.stacks import Stacks

UNKNOWN_FACTOR = 3.0  # times the patience, until the job was seen at work for as long as that
PAUSE_FACTOR = 3.0  # patience against the longest pause that ended by itself
PAUSE_SECONDS = 0.5  # without work: a pause
BETWEEN_LOOKS = 0.2  # of the patience: between two looks at stacks, and more where they told nothing
LONGEST_BETWEEN = 30.0  # seconds
LATER = 1.5  # times the time before, where two looks told nothing
WORKS_SHARE = 0.25  # of a processor, for a rank with all its threads and children: it works
WORKS_BYTES = 1e6  # a second, read and written: likewise


@dataclass
class Looks:
    """Stacks and work of all ranks at one moment. `wait`: seconds until the next look."""

    stacks: Stacks
    work: dict[int, tuple[float, int]]
    wait: float

    @property
    def due(self) -> float:
        """Monotonic seconds."""
        return self.stacks.at + self.wait

    def busy_since(self, before: Looks) -> frozenset[int]:
        """Ranks that worked between two looks, if not in their main threads: loader workers, compilers, a writer."""
        seconds = self.stacks.at - before.stacks.at
        return frozenset(
            rank
            for rank, (used, moved) in self.work.items()
            if rank in before.work
            and (used - before.work[rank][0] >= WORKS_SHARE * seconds or moved - before.work[rank][1] >= WORKS_BYTES * seconds)
        )


@dataclass
class Crew:
    """`generation` counts the starts since the watch began. Times in monotonic seconds."""

    ranks: list[Rank]
    generation: int
    gone: list[Gone] = field(default_factory=list)  # in order
    looks: Looks | None = None
    end_told: bool = False
    calm: bool = False  # nobody stood out at first as slow
    slow_from: float = 0.0  # readings of before a fault are not compared with those after it
    slow_seen: float = 0.0
    longest_pause: float = 0.0
    worked: float = 0.0
    begun: float = field(default_factory=time.monotonic)
    _pausing: float = 0.0
    _looked: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.sampler = Sampler(self.ranks)
        self.slow_from = self.begun
        self.glances = Glances(tuple(rank.rank for rank in self.ranks), self.slow_from + SELDOM)

    @property
    def alive(self) -> list[Rank]:
        ended = {one.end.pid for one in self.gone}
        return [rank for rank in self.ranks if rank.pid not in ended]

    @property
    def world(self) -> int:
        """Ranks of the whole job."""
        return self.ranks[0].world

    def cards(self) -> dict[int, int]:
        """Rank -> card on this host."""
        return {rank.rank: rank.card for rank in self.ranks}

    def patience(self, given: float) -> float:
        """Seconds without progress that are too long: by what this job has shown to be usual for it."""
        return max(given if self.worked >= given else UNKNOWN_FACTOR * given, PAUSE_FACTOR * self.longest_pause)

    def note_pause(self, seconds: float, *, told: bool) -> None:
        """`seconds`: how long it has been pausing now. A pause that was `told` as a fault teaches nothing."""
        now = time.monotonic()
        if seconds >= PAUSE_SECONDS:
            self._pausing = max(self._pausing, seconds)
        else:
            self.worked += now - self._looked
            if not told:
                self.longest_pause = max(self.longest_pause, self._pausing)
            self._pausing = 0.0
        self._looked = now

    def look(self, stacks: Stacks, patience: float) -> tuple[Looks | None, Looks]:
        """A new look; the one before it, if there is one, is what it is compared with."""
        before = self.looks
        self.looks = new = Looks(stacks, works(self.alive), BETWEEN_LOOKS * patience)
        return before, new

    def later(self, before: Looks) -> None:
        """The last two looks told nothing: the next one can wait longer."""
        if self.looks is not None:
            self.looks.wait = min(LONGEST_BETWEEN, max(self.looks.wait, LATER * before.wait))


def works(ranks: Sequence[Rank]) -> dict[int, tuple[float, int]]:
    """Rank -> what `work_of` says of it."""
    return {rank.rank: work_of(rank.pid) for rank in ranks}


def places_of(ranks: Mapping[int, int], world: int, host: str, generation: int) -> Places:
    """`ranks`: rank -> card on this host."""
    known = max(world, max(ranks, default=0) + 1)
    return Places(generation, tuple(host if rank in ranks else "" for rank in range(known)), dict(ranks))


@dataclass(frozen=True)
class Places:
    """Which host and card holds a rank, as FaultBook asks for it. Hosts that are not watched are empty."""

    generation: int
    hosts: tuple[str, ...]
    cards: Mapping[int, int]

    def place(self, rank: int) -> str:
        """`host/0`."""
        return f"{self.hosts[rank]}/{self.cards[rank]}"


def host_name() -> str:
    """This machine's, in letters that job.json allows."""
    name = "".join(letter if letter.isalnum() else "-" for letter in os.uname().nodename.split(".")[0])[:40].strip("-")
    return name or "host"
