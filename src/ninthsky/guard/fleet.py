"""What the controller knows of every rank, in numpy arrays: the newest record, its age, and the last steps' times.

One row per rank of the current generation, whichever card holds it. The judges see the fleet as a Window and nothing else.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ninthsky.guard.probe.record import GROUPS, SIZE
from ninthsky.guard.protocol import Seen

STEPS = 64  # steps of which times are kept

GROUP_TYPE = np.dtype([("id", "<u8"), ("enqueued", "<u4"), ("completed", "<u4"), ("op", "<u8")])
RECORD_TYPE = np.dtype(
    [
        ("sequence", "<u4"),
        ("generation", "<u4"),
        ("rank", "<i4"),
        ("step", "<i4"),
        ("attempt", "<i4"),
        ("phase", "<u2"),
        ("flags", "<u2"),
        ("local_wall", "<f4"),
        ("local_cpu", "<f4"),
        ("communication", "<f4"),
        ("data", "<f4"),
        ("loss", "<f4"),
        ("grad_norm", "<f4"),
        ("digest", "<u8"),
        ("heartbeat", "<f8"),
        ("groups", GROUP_TYPE, (GROUPS,)),
    ]
)
assert RECORD_TYPE.itemsize == SIZE

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Window:
    """The fleet at one moment. Arrays have one row per rank; times in seconds, of the controller's monotonic clock.

    `record` is the newest record of each rank, of type RECORD_TYPE; `known` says where there is one of this generation.
    `local_wall`, `local_cpu` [ranks, STEPS] in milliseconds, newest last, NaN where fewer steps were seen.
    `longest_gap` is how long a normal step of this generation goes without any progress: the second longest such time among
    the last STEPS steps (the longest may have been a hang that ended by itself).
    """

    now: float
    generation: int
    hosts: tuple[str, ...]  # of each rank
    cards: tuple[int, ...]
    record: NDArray[np.void]
    known: NDArray[np.bool_]
    heartbeat_age: Floats
    stale_cpu: Floats  # processor seconds used since the last heartbeat
    busy_cpu: Floats  # processor seconds used since the rank last got on
    state: tuple[str, ...]  # letter of /proc/PID/stat
    unheld: Floats
    quiet: Floats  # since the rank's step, phase or a collective's count last changed
    host_silence: dict[str, float]  # since the last report of each host that has ranks
    host_late: dict[str, float]  # how late that host's agent itself was
    local_wall: Floats
    local_cpu: Floats
    steps_seen: int  # the fewest steps seen of any rank in this generation
    longest_gap: float

    @property
    def ranks(self) -> int:
        return len(self.hosts)

    def place(self, rank: int) -> str:
        """`host-1/0`: the card that holds the rank."""
        return f"{self.hosts[rank]}/{self.cards[rank]}"


class Fleet:
    """Fed with reports, asked for windows."""

    def __init__(self, world: int) -> None:
        self.world = world
        self.generation = 0
        self.begin(0, [("", -1, -1)] * world, 0.0)

    def begin(self, generation: int, places: list[tuple[str, int, int]], now: float) -> None:
        """A new generation: `places` has (host, slot, pid) of each rank. Times of steps are forgotten."""
        w = self.world
        self.generation = generation
        self._places = list(places)
        self._rank_of = {(host, pid): rank for rank, (host, _, pid) in enumerate(places)}
        self._record = np.zeros(w, RECORD_TYPE)
        self._known = np.zeros(w, bool)
        self._age = np.zeros(w)
        self._seen_at = np.full(w, now)
        self._cpu = np.zeros(w)
        self._cpu_at_beat = np.zeros(w)
        self._cpu_at_move = np.zeros(w)
        self._state = ["R"] * w
        self._unheld = np.zeros(w)
        self._moved_at = np.full(w, now)
        self._wall_ring = np.full((w, STEPS), np.nan)
        self._cpu_ring = np.full((w, STEPS), np.nan)
        self._count = np.zeros(w, np.int64)
        self._any_moved_at = now
        self._gap = 0.0  # longest of the step under way
        self._gaps: deque[float] = deque(maxlen=STEPS)
        self._newest = -1
        self._last_report: dict[str, float] = {host: now for host, _, _ in places}
        self._late: dict[str, float] = {}

    def report(self, host: str, processes: list[Seen], now: float, late: float = 0.0) -> None:
        """Takes in what a host reports of its processes."""
        self._last_report[host] = now
        self._late[host] = late
        for seen in processes:
            rank = self._rank_of.get((host, seen.pid))
            if rank is None:
                continue
            self._state[rank] = seen.state
            self._unheld[rank] = seen.unheld
            if len(seen.record) == SIZE:
                self._update(rank, np.frombuffer(seen.record, RECORD_TYPE)[0], seen, now)
            self._cpu[rank] = seen.cpu
            self._seen_at[rank] = now

    def _update(self, rank: int, record: np.void, seen: Seen, now: float) -> None:
        before = self._record[rank]
        if record["heartbeat"] != before["heartbeat"]:
            self._cpu_at_beat[rank] = seen.cpu
        self._age[rank] = max(seen.age, 0.0)
        if record["generation"] != self.generation:
            self._record[rank]["heartbeat"] = record["heartbeat"]
            return
        moved = _position(record) != _position(before)
        finished = self._known[rank] and record["step"] > before["step"]
        if moved:
            self._moved_at[rank] = now
            self._cpu_at_move[rank] = seen.cpu
            self._gap = max(self._gap, now - self._any_moved_at)
            self._any_moved_at = now
            if record["step"] > self._newest:
                if self._newest >= 0:
                    self._gaps.append(self._gap)
                self._newest, self._gap = int(record["step"]), 0.0
        if finished:
            self._wall_ring[rank] = np.roll(self._wall_ring[rank], -1)
            self._cpu_ring[rank] = np.roll(self._cpu_ring[rank], -1)
            self._wall_ring[rank, -1], self._cpu_ring[rank, -1] = record["local_wall"], record["local_cpu"]
            self._count[rank] += 1
        self._record[rank] = record
        self._known[rank] = True

    def step(self) -> int:
        """The newest step that any rank was seen in, -1 before the first."""
        return int(self._record["step"][self._known].max()) if self._known.any() else -1

    def glance(self, now: float) -> tuple[NDArray[np.bool_], Floats, Floats]:
        """For a picture, cheaper than a window. Of each rank: whether its record of this generation is here, seconds since it
        last got on, seconds since its host's last report."""
        silence = {host: now - at for host, at in self._last_report.items()}
        return (
            self._known.copy(),
            now - self._moved_at,
            np.fromiter((silence.get(host, 0.0) for host, _, _ in self._places), np.float64),
        )

    def window(self, now: float) -> Window:
        """A picture of the fleet that later reports do not change."""
        hosts = tuple(host for host, _, _ in self._places)
        return Window(
            now=now,
            generation=self.generation,
            hosts=hosts,
            cards=tuple(slot for _, slot, _ in self._places),
            record=self._record.copy(),
            known=self._known.copy(),
            heartbeat_age=self._age + (now - self._seen_at),
            stale_cpu=self._cpu - self._cpu_at_beat,
            busy_cpu=self._cpu - self._cpu_at_move,
            state=tuple(self._state),
            unheld=self._unheld.copy(),
            quiet=now - self._moved_at,
            host_silence={host: now - self._last_report[host] for host in sorted(set(hosts))},
            host_late={host: self._late.get(host, 0.0) for host in sorted(set(hosts))},
            local_wall=self._wall_ring.copy(),
            local_cpu=self._cpu_ring.copy(),
            steps_seen=int(self._count.min()),
            longest_gap=sorted(self._gaps)[-2] if len(self._gaps) > 1 else 0.0,
        )


def _position(record: np.void) -> tuple[int, int, int, int, int]:
    """What changes when a rank gets on. Not the heartbeat: that beats in a blocked rank too."""
    groups = record["groups"]
    return (
        int(record["step"]),
        int(record["attempt"]),
        int(record["phase"]),
        int(groups["enqueued"].sum(dtype=np.int64)),
        int(groups["completed"].sum(dtype=np.int64)),
    )
