"""What the controller knows of every rank, in numpy arrays: the newest record, its age, and the last steps' times.

One row per rank of the current generation, whichever card holds it. The judges see the fleet as a Window and nothing else.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ninthsky.guard.judges.verdict import Limits
from ninthsky.guard.probe.record import GROUPS, SIZE
from ninthsky.guard.protocol import Seen

MOVING_SECONDS = 1.0  # since any rank got on: no judge of hangs speaks earlier
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
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """The fleet at one moment. Arrays have one row per rank; times in seconds, of the controller's monotonic clock.

    `record` is the newest record of each rank, of type RECORD_TYPE; `known` says where there is one of this generation.
    `local_wall`, `local_cpu` [ranks, STEPS] in milliseconds, newest last, NaN where fewer steps were seen; as they
    were when the rank that is last to finish its steps was seen to finish one.
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
    state: tuple[str, ...] | NDArray[np.str_]  # letter of /proc/PID/stat
    unheld: Floats
    quiet: Floats  # since the rank's step, phase or a collective's count last changed
    host_silence: dict[str, float]  # since the last report of each host that has ranks
    host_late: dict[str, float]  # how late that host's agent itself was
    local_wall: Floats
    local_cpu: Floats
    steps_seen: int  # the fewest steps seen of any rank in this generation
    longest_gap: float
    data: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))  # as local_wall: loading

    @property
    def ranks(self) -> int:
        return len(self.hosts)

    def place(self, rank: int) -> str:
        """`host-1/0`: the card that holds the rank."""
        return f"{self.hosts[rank]}/{self.cards[rank]}"


class Fleet:
    """Fed with reports, asked for windows.

    Reports are kept as they come and taken in together when something is asked: of 18,432 ranks, one by one would cost a core.
    """

    def __init__(self, world: int) -> None:
        self.world = world
        self.generation = 0
        self.begin(0, [("", -1, -1)] * world, 0.0)

    def begin(self, generation: int, places: list[tuple[str, int, int]], now: float) -> None:
        """A new generation: `places` has (host, slot, pid) of each rank. Times of steps are forgotten."""
        w = self.world = len(places)
        self.generation = generation
        self._places = list(places)
        self._hosts = tuple(host for host, _, _ in places)
        self._host_names = sorted(set(self._hosts))
        self._cards = tuple(slot for _, slot, _ in places)
        self._rank_of = {(host, pid): rank for rank, (host, _, pid) in enumerate(places)}
        self._record = np.zeros(w, RECORD_TYPE)
        self._known = np.zeros(w, bool)
        self._age = np.zeros(w)
        self._seen_at = np.full(w, now)
        self._cpu = np.zeros(w)
        self._cpu_at_beat = np.zeros(w)
        self._cpu_at_move = np.zeros(w)
        self._state = np.full(w, "R", "<U1")
        self._unheld = np.zeros(w)
        self._moved_at = np.full(w, now)
        self._wall_ring = np.full((w, STEPS), np.nan)
        self._cpu_ring = np.full((w, STEPS), np.nan)
        self._data_ring = np.full((w, STEPS), np.nan, np.float32)
        self._count = np.zeros(w, np.int64)
        self._times: tuple[int, Floats, Floats, NDArray[np.float32]] | None = None  # steps seen, the rings as they were
        self._any_moved_at = now
        self._gap = 0.0  # longest of the step under way
        self._gaps: deque[float] = deque(maxlen=STEPS)
        self._newest = -1
        self._last_report: dict[str, float] = dict.fromkeys(self._host_names, now)
        self._late: dict[str, float] = {}
        self._pending: dict[str, tuple[float, list[Seen]]] = {}  # by host, in the order they came

    def report(self, host: str, processes: list[Seen], now: float, late: float = 0.0) -> None:
        """Takes in what a host reports of its processes."""
        if host in self._pending:
            self._take_in()
        self._last_report[host] = now
        self._late[host] = late
        self._pending[host] = (now, processes)

    def _take_in(self) -> None:
        """All reports that wait, at most one of a host."""
        pending, self._pending = self._pending, {}
        find = self._rank_of.get
        found = [
            (rank, now, seen)
            for host, (now, processes) in pending.items()
            for seen in processes
            if (rank := find((host, seen.pid))) is not None
        ]
        if not found:
            return
        ranks = np.array([rank for rank, _, _ in found])
        at = np.array([now for _, now, _ in found])
        cpu = np.array([seen.cpu for _, _, seen in found])
        self._state[ranks] = [seen.state for _, _, seen in found]
        self._unheld[ranks] = [seen.unheld for _, _, seen in found]
        whole = [seen for _, _, seen in found if len(seen.record) == SIZE]
        if whole:
            kept = slice(None) if len(whole) == len(found) else [len(seen.record) == SIZE for _, _, seen in found]
            record = np.frombuffer(b"".join([seen.record for seen in whole]), RECORD_TYPE)
            age = np.array([seen.age for seen in whole])
            still = np.array([seen.still for seen in whole])
            self._update(ranks[kept], record, np.maximum(age, 0.0), cpu[kept], at[kept] - np.maximum(still, 0.0))
        self._cpu[ranks] = cpu
        self._seen_at[ranks] = at

    def _update(self, ranks: Ints, record: NDArray[np.void], age: Floats, cpu: Floats, at: Floats) -> None:
        """`at`: when its agent last saw each of them move."""
        before = self._record[ranks]
        beat = record["heartbeat"] != before["heartbeat"]
        self._cpu_at_beat[ranks[beat]] = cpu[beat]
        self._age[ranks] = age
        mine = record["generation"] == self.generation
        if not mine.all():
            self._record["heartbeat"][ranks[~mine]] = record["heartbeat"][~mine]
            ranks, record, before, cpu, at = ranks[mine], record[mine], before[mine], cpu[mine], at[mine]
        moved = (_position(record) != _position(before)).any(axis=1)
        self._moved_at[ranks[moved]] = at[moved]
        self._cpu_at_move[ranks[moved]] = cpu[moved]
        self._note_gaps(at[moved], record["step"][moved])
        finished = ranks[self._known[ranks] & (record["step"] > before["step"])]
        self._record[ranks] = record
        self._known[ranks] = True
        if len(finished):
            newest = self._record[finished]
            for ring, name in ((self._wall_ring, "local_wall"), (self._cpu_ring, "local_cpu"), (self._data_ring, "data")):
                ring[finished, :-1] = ring[finished, 1:]
                ring[finished, -1] = newest[name]
            self._count[finished] += 1

    def _note_gaps(self, at: Floats, step: NDArray[np.int32]) -> None:
        """How long nothing moved before each of these moves."""
        if not len(at):
            return
        order = np.argsort(at, kind="stable")
        at, step = at[order], step[order]
        moments, first = np.unique(at, return_index=True)
        for moment, reached in zip(moments.tolist(), np.maximum.reduceat(step, first).tolist(), strict=True):
            self._gap = max(self._gap, moment - self._any_moved_at)
            self._any_moved_at = max(self._any_moved_at, moment)
            if reached > self._newest:
                if self._newest >= 0:
                    self._gaps.append(self._gap)
                self._newest, self._gap = reached, 0.0

    def step(self) -> int:
        """The newest step that any rank was seen in, -1 before the first."""
        self._take_in()
        return int(self._record["step"][self._known].max()) if self._known.any() else -1

    def glance(self, now: float) -> tuple[NDArray[np.bool_], Floats, Floats]:
        """For a picture, cheaper than a window. Of each rank: whether its record of this generation is here, seconds since it
        last got on, seconds since its host's last report."""
        self._take_in()
        silence = {host: now - at for host, at in self._last_report.items()}
        return (
            self._known.copy(),
            now - self._moved_at,
            np.fromiter((silence.get(host, 0.0) for host, _, _ in self._places), np.float64),
        )

    def calm(self, now: float, limits: Limits) -> bool:
        """Whether nothing is old enough to be a fault, by the reports that were taken in. Newer ones only make it younger."""
        return bool(
            now - self._moved_at.max(initial=-np.inf) < MOVING_SECONDS
            and (self._age + (now - self._seen_at)).max(initial=0.0) < limits.hang_seconds
            and now - min(self._last_report.values(), default=now) < limits.host_seconds
        )

    def window(self, now: float) -> Window:
        """A picture of the fleet that later reports do not change."""
        self._take_in()
        steps_seen = int(self._count.min())
        if self._times is None or self._times[0] != steps_seen:
            self._times = (steps_seen, self._wall_ring.copy(), self._cpu_ring.copy(), self._data_ring.copy())
        silence = {host: now - self._last_report[host] for host in self._host_names}
        return Window(
            now=now,
            generation=self.generation,
            hosts=self._hosts,
            cards=self._cards,
            record=self._record.copy(),
            known=self._known.copy(),
            heartbeat_age=self._age + (now - self._seen_at),
            stale_cpu=self._cpu - self._cpu_at_beat,
            busy_cpu=self._cpu - self._cpu_at_move,
            state=self._state.copy(),
            unheld=self._unheld.copy(),
            quiet=now - self._moved_at,
            host_silence=silence,
            host_late={host: self._late.get(host, 0.0) for host in self._host_names},
            local_wall=self._times[1],
            local_cpu=self._times[2],
            steps_seen=steps_seen,
            longest_gap=sorted(self._gaps)[-2] if len(self._gaps) > 1 else 0.0,
            data=self._times[3],
        )


def _position(record: NDArray[np.void]) -> Ints:
    """What changes when a rank gets on, one row each. Not the heartbeat: that beats in a blocked rank too."""
    groups = record["groups"]
    columns = [record[name].astype(np.int64) for name in ("step", "attempt", "phase")]
    columns += [groups[name].sum(axis=1, dtype=np.int64) for name in ("enqueued", "completed")]
    return np.stack(columns, axis=1)
