"""What the controller knows of every rank, in numpy arrays: the newest record, its age, and the last steps' times.

One row per rank of the current generation, whichever card holds it. The judges see the fleet as a Window and nothing else.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ninthsky.guard.judges.verdict import Limits
from ninthsky.guard.probe.record import GROUPS, SIZE
from ninthsky.guard.seen import ROW

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
        ("moved", "<f8"),
        ("heartbeat", "<f8"),
        ("groups", GROUP_TYPE, (GROUPS,)),
    ]
)
assert RECORD_TYPE.itemsize == SIZE
ROW_TYPE = np.dtype(  # of seen.py
    [
        ("record", RECORD_TYPE),
        ("age", "<f8"),
        ("cpu", "<f8"),
        ("unheld", "<f8"),
        ("still", "<f8"),
        ("slot", "<i4"),
        ("pid", "<i4"),
        ("whole", "?"),
        ("state", "u1"),
        ("", "V6"),
    ]
)
assert ROW_TYPE.itemsize == ROW.size
_WORDS = SIZE // 8  # of a record, in a row

Floats = NDArray[np.float64]
Times = NDArray[np.floating[Any]]  # of steps: 32 bits wide in reports, and kept so
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
    local_wall: Times
    local_cpu: Times
    steps_seen: int  # the fewest steps seen of any rank in this generation
    longest_gap: float
    data: Times = field(default_factory=lambda: np.empty((0, 0), np.float32))  # as local_wall: loading

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
        self._number_of = {host: number for number, host in enumerate(self._host_names)}
        keys = _keys(np.array([self._number_of[host] for host in self._hosts]), np.array([pid for _, _, pid in places]))
        self._sorted = np.argsort(keys, kind="stable")  # ranks by host and process
        self._keys = keys[self._sorted]
        self._record = np.zeros(w, RECORD_TYPE)
        self._position = np.zeros((w, 5), np.int64)  # of that record
        self._known = np.zeros(w, bool)
        self._age = np.zeros(w)
        self._seen_at = np.full(w, now)
        self._cpu = np.zeros(w)
        self._cpu_at_beat = np.zeros(w)
        self._cpu_at_move = np.zeros(w)
        self._state = np.full(w, ord("R"), np.uint8)
        self._unheld = np.zeros(w)
        self._moved_at = np.full(w, now)
        self._rings = {name: np.full((w, STEPS), np.nan, np.float32) for name in ("local_wall", "local_cpu", "data")}
        self._count = np.zeros(w, np.int64)  # steps seen; the next one's times go to column count % STEPS
        self._times: tuple[int, dict[str, Times]] | None = None  # steps seen, the rings in order as they were
        self._any_moved_at = now
        self._gap = 0.0  # longest of the step under way
        self._gaps: deque[float] = deque(maxlen=STEPS)
        self._newest = -1
        self._last_report: dict[str, float] = dict.fromkeys(self._host_names, now)
        self._late: dict[str, float] = {}
        self._pending: dict[str, tuple[float, bytes]] = {}  # by host, in the order they came

    def report(self, host: str, processes: bytes, now: float, late: float = 0.0) -> None:
        """Takes in what a host reports of its processes: rows of seen.py."""
        if host in self._pending:
            self._take_in()
        self._last_report[host] = now
        self._late[host] = late
        self._pending[host] = (now, processes)

    def _take_in(self) -> None:
        """All reports that wait, at most one of a host."""
        pending, self._pending = self._pending, {}
        known = [(self._number_of[host], *report) for host, report in pending.items() if host in self._number_of]
        rows = np.frombuffer(b"".join([processes for _, _, processes in known]), ROW_TYPE)
        if not len(rows):
            return
        each = [len(processes) // ROW.size for _, _, processes in known]
        keys = _keys(np.repeat([number for number, _, _ in known], each), rows["pid"])
        at = np.repeat([now for _, now, _ in known], each)
        place = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        mine = self._keys[place] == keys
        ranks = self._sorted[place]
        if not mine.all():
            rows, at, ranks = _pick(rows, mine), at[mine], ranks[mine]
        cpu = rows["cpu"].astype(np.float64)
        self._state[ranks] = rows["state"]
        self._unheld[ranks] = rows["unheld"]
        whole = rows["whole"]
        if whole.all():
            self._update(ranks, rows, cpu, at)
        else:
            self._update(ranks[whole], _pick(rows, whole), cpu[whole], at[whole])
        self._cpu[ranks] = cpu
        self._seen_at[ranks] = at

    def _update(self, ranks: Ints, rows: NDArray[np.void], cpu: Floats, seen_at: Floats) -> None:
        """`seen_at`: when its report came."""
        record = rows["record"]
        beat = record["heartbeat"] != self._record["heartbeat"][ranks]
        self._cpu_at_beat[ranks[beat]] = cpu[beat]
        self._age[ranks] = np.maximum(rows["age"], 0.0)
        mine = record["generation"] == self.generation
        if not mine.all():
            self._record["heartbeat"][ranks[~mine]] = record["heartbeat"][~mine]
            ranks, rows, cpu, seen_at = ranks[mine], _pick(rows, mine), cpu[mine], seen_at[mine]
            record = rows["record"]
        position = _position(record)
        moved = (position != self._position[ranks]).any(axis=1)
        at = seen_at - np.maximum(rows["still"], 0.0)  # when its agent last saw it move
        self._moved_at[ranks[moved]] = at[moved]
        self._cpu_at_move[ranks[moved]] = cpu[moved]
        self._note_gaps(at[moved], record["step"][moved])
        done = self._known[ranks] & (record["step"] > self._record["step"][ranks])
        _words(self._record)[ranks] = _words(rows)[:, :_WORDS]
        self._position[ranks] = position
        self._known[ranks] = True
        finished = ranks[done]
        if len(finished):
            column = self._count[finished] % STEPS
            for name, ring in self._rings.items():
                ring[finished, column] = record[name][done]
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
            self._times = (steps_seen, {name: _in_order(ring, self._count % STEPS) for name, ring in self._rings.items()})
        silence = {host: now - self._last_report[host] for host in self._host_names}
        return Window(
            now=now,
            generation=self.generation,
            hosts=self._hosts,
            cards=self._cards,
            record=_words(self._record).copy().view(RECORD_TYPE).ravel(),
            known=self._known.copy(),
            heartbeat_age=self._age + (now - self._seen_at),
            stale_cpu=self._cpu - self._cpu_at_beat,
            busy_cpu=self._cpu - self._cpu_at_move,
            state=self._state.astype(np.uint32).view("<U1"),
            unheld=self._unheld.copy(),
            quiet=now - self._moved_at,
            host_silence=silence,
            host_late={host: self._late.get(host, 0.0) for host in self._host_names},
            local_wall=self._times[1]["local_wall"],
            local_cpu=self._times[1]["local_cpu"],
            steps_seen=steps_seen,
            longest_gap=sorted(self._gaps)[-2] if len(self._gaps) > 1 else 0.0,
            data=self._times[1]["data"],
        )


def _keys(hosts: Ints, pids: NDArray[Any]) -> Ints:
    return (hosts.astype(np.int64) << 32) | pids.astype(np.int64)


def _words(records: NDArray[np.void]) -> NDArray[np.uint64]:
    """The same memory as words of eight bytes: numpy copies records field by field, which takes ten times as long."""
    return records.view(np.uint64).reshape(len(records), records.itemsize // 8)


def _pick(rows: NDArray[np.void], which: NDArray[np.bool_]) -> NDArray[np.void]:
    return _words(rows)[which].view(ROW_TYPE).ravel()


def _in_order(ring: Times, first: Ints) -> Times:
    """Rows turned so that each begins with its column `first`: the oldest step."""
    turned = np.empty_like(ring)
    for column in np.unique(first).tolist():  # few: all ranks finish a step at about the same time
        rows = slice(None) if (first == column).all() else np.flatnonzero(first == column)
        turned[rows, : STEPS - column], turned[rows, STEPS - column :] = ring[rows, column:], ring[rows, :column]
    return turned


def _position(record: NDArray[np.void]) -> Ints:
    """What changes when a rank gets on, one row each. Not the heartbeat: that beats in a blocked rank too."""
    groups = record["groups"]
    columns = [record[name].astype(np.int64) for name in ("step", "attempt", "phase")]
    columns += [groups[name].sum(axis=1, dtype=np.int64) for name in ("enqueued", "completed")]
    return np.stack(columns, axis=1)
