"""Nothing moves: who is waited for and waits for nobody?

Heartbeats alone tell that there is a hang, not where: only a frozen process stops beating here, because the beat comes from
a thread of its own. For the rest the sequence numbers of every process group are a wait-for graph: a rank that entered
collective N of a group waits for those members that have not.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ninthsky.evidence import Fact
from ninthsky.guard.controller.fleet import Window
from ninthsky.guard.judges.verdict import Limits, Verdict
from ninthsky.guard.probe.record import Phase

SETTLING_STEPS = 3  # first steps of a generation are slower: caches, allocations, connections
SETTLING_FACTOR = 4.0
GAP_FACTOR = 3.0
STOPPED = ("T", "t")
BUSY_SHARE = 0.25  # of the quiet time spent on the processor: such a rank works (a checkpoint, an export), if slowly
BUSY_FACTOR = 8.0
UNHEARD_SHARE = 0.1  # of the ranks on silent or late hosts; with more, no hang is judged
LATE_SECONDS = 0.5  # an agent whose own clock tick came so late stood still itself
MANY = 8  # ranks that are waited for at once; more are no cards
IDLE_CPU = 0.05  # seconds of processor time since the last heartbeat, below which a process did nothing


def judge_hang(window: Window, limits: Limits) -> list[Verdict]:
    """Who holds the others up; nobody while anything moves, or while what is known of them cannot be trusted.

    A few hosts of many may be silent or late, lost messages do that; then nobody on one of those is named.
    """
    heard = judged_hosts(window, limits)
    if (~heard).mean() > UNHEARD_SHARE:
        return []  # another judge's case, or this machine itself stood still
    return judge_frozen(window, limits) or judge_stuck(window, limits)


def judged_hosts(window: Window, limits: Limits) -> NDArray[np.bool_]:
    """[ranks]: whether the rank's host reports, and in time."""
    doubtful = {host for host, silence in window.host_silence.items() if silence > limits.host_seconds / 2}
    doubtful |= {host for host, late in window.host_late.items() if late > LATE_SECONDS}
    if not doubtful:
        return np.ones(window.ranks, bool)
    return np.array([host not in doubtful for host in window.hosts])


def judge_frozen(window: Window, limits: Limits) -> list[Verdict]:
    """A process whose heart stopped, while others' beat."""
    age = window.heartbeat_age
    if age.max(initial=0.0) < limits.hang_seconds:
        return []
    letters = np.asarray(window.state)
    stopped = np.isin(letters, STOPPED)
    started = window.known & (window.record["phase"] > Phase.START)
    starved = letters == "R"  # runnable, and gets no turn: the machine is crowded
    silent = (age >= limits.hang_seconds) & (stopped | (started & ~starved & (window.stale_cpu < IDLE_CPU)))
    beating = age < limits.hang_seconds / 2
    if not silent.any() or not (beating.any() or stopped.any()):
        return []
    # A stopped process is beyond doubt; one that merely does not beat must also hold the others up.
    blocked = window.quiet[beating].min(initial=np.inf) >= max(1.0, window.longest_gap)
    silent &= stopped | blocked
    silent &= judged_hosts(window, limits)
    ranks = [int(rank) for rank in np.flatnonzero(silent)]
    verdicts = []
    for rank in ranks:
        facts = [
            Fact("heartbeat age", float(age[rank]), limits.hang_seconds, "s", "record in shared memory"),
            Fact("process state", str(window.state[rank]), "T" if stopped[rank] else None, source="/proc/PID/stat"),
            Fact("processor time since the last heartbeat", float(window.stale_cpu[rank]), IDLE_CPU, "s", "/proc/PID/stat"),
            *_waiting_for(window, rank),
        ]
        others = age[beating]
        ruled_out = []
        if others.size:
            ruled_out.append(
                f"the network or the whole machine: {others.size} other ranks beat, the oldest {others.max():.1f} s ago"
            )
        ruled_out.append("an exit: the process exists")
        if stopped[rank]:
            ruled_out.append("slow code: a stopped process runs none")
        text = "process is stopped (state T)" if stopped[rank] else "process is frozen: no heartbeat, no processor time"
        verdicts.append(
            Verdict(
                "frozen", (rank,), text, tuple(facts), tuple(ruled_out), 1.0 if stopped[rank] else 0.9, onset=float(age[rank])
            )
        )
    return verdicts


def judge_stuck(window: Window, limits: Limits) -> list[Verdict]:
    """All hearts beat, nothing moves."""
    if not window.known.all():
        return []
    limit = stuck_limit(window, limits)
    quiet = float(window.quiet.min())
    if quiet < limit or (window.record["phase"] == Phase.DONE).any() or (window.record["phase"] == Phase.VERDICT).all():
        return []
    graph = WaitFor(window.record)
    facts: tuple[Fact, ...]
    base = (
        Fact("no progress anywhere", quiet, limit, "s", "steps, phases and collectives of all ranks"),
        Fact("oldest heartbeat", float(window.heartbeat_age.max()), limits.hang_seconds, "s", "records"),
    )
    beating = "a frozen process: every heartbeat thread still beats, so only the main thread is stuck"
    if graph.mismatched.any():
        ranks = np.flatnonzero(graph.mismatched)
        facts = (
            *base,
            Fact("ranks in a different collective under the same number", _listed(ranks), source="op hash of the records"),
        )
        return [
            Verdict(
                "mismatch",
                (),
                "ranks entered different collectives: an error of the program",
                facts,
                (beating,),
                0.8,
                onset=quiet,
            )
        ]
    roots = np.flatnonzero(graph.roots)
    if not judged_hosts(window, limits)[roots].all():
        return []  # their host is silent: the judge of hosts will say so, or they are heard again
    if len(roots) == 0:
        facts = (
            *base,
            Fact("ranks inside a collective that all have entered", float(graph.waiting.sum()), source="sequence numbers"),
        )
        text = "every rank entered the same collective and none left it: a link or the transport"
        return [Verdict("unknown", (), text, facts, (beating, "a rank that did not arrive: all arrived"), 0.5, onset=quiet)]
    if len(roots) > max(1, min(window.ranks // 4, MANY)):
        facts = (*base, Fact("ranks waited for", _listed(roots), source="sequence numbers"))
        return [Verdict("unknown", (), f"{len(roots)} ranks at once are waited for", facts, (beating,), 0.3, onset=quiet)]
    if (window.unheld[roots] >= 1.0).all():
        facts = (*base, Fact("longest wait for a shard's copy", float(window.unheld[roots].max()), 1.0, "s", "agent"))
        text = f"ranks {', '.join(map(str, roots))} wait until another host holds a copy of their state"
        return [
            Verdict(
                "unknown",
                (),
                text,
                facts,
                (beating, "the card: it waits for the copy, not the other way round"),
                0.5,
                onset=quiet,
            )
        ]
    busy = (window.busy_cpu[roots] >= BUSY_SHARE * quiet) | np.array([window.state[rank] == "D" for rank in roots])
    if busy.any() and quiet < BUSY_FACTOR * limit:
        return []
    verdicts = []
    for rank in map(int, roots):
        phase = Phase(int(window.record["phase"][rank])).name
        cpu = float(window.busy_cpu[rank])
        facts = (
            *base,
            Fact("phase", phase, source="record"),
            Fact("processor time since it last got on", cpu, BUSY_SHARE * quiet, "s", "/proc/PID/stat"),
            Fact("process state", str(window.state[rank]), source="/proc/PID/stat"),
            *_waiting_for(window, rank),
        )
        text = f"main thread is stuck in phase {phase}"
        confidence = 0.9 if len(roots) == 1 else 0.7
        ruled_out = (beating, f"a victim: {int(graph.waiting.sum())} ranks wait in a collective, this one waits in none")
        verdicts.append(Verdict("stuck", (rank,), text, facts, ruled_out, confidence, onset=quiet))
    return verdicts


def stuck_limit(window: Window, limits: Limits) -> float:
    """Seconds without progress that are too long: by the longest gap that normal steps had, and more in the first steps."""
    limit = max(limits.hang_seconds, GAP_FACTOR * window.longest_gap)
    return limit * (SETTLING_FACTOR if window.steps_seen < SETTLING_STEPS else 1.0)


class WaitFor:
    """The wait-for graph of a fleet's records, all groups together. Arrays have one entry per rank."""

    waiting: NDArray[np.bool_]  # stands in a collective
    waited_for: NDArray[np.bool_]  # has not entered one in which others stand
    roots: NDArray[np.bool_]  # waited for, and waits for nobody
    mismatched: NDArray[np.bool_]  # entered another collective than most under the same number

    def __init__(self, record: NDArray[np.void]) -> None:
        groups = record["groups"]
        ranks = len(record)
        used = groups["id"] != 0
        self.waiting = (used & (groups["completed"] < groups["enqueued"])).any(axis=1)
        self.waited_for = np.zeros(ranks, bool)
        self.mismatched = np.zeros(ranks, bool)
        rows = np.nonzero(used)[0]
        ids, enqueued, completed, op = (groups[name][used] for name in ("id", "enqueued", "completed", "op"))
        names, member_of = np.unique(ids, return_inverse=True)
        newest = np.zeros(len(names), np.int64)
        np.maximum.at(newest, member_of, enqueued.astype(np.int64))
        at_front = enqueued == newest[member_of]
        stands = np.zeros(len(names), bool)
        np.logical_or.at(stands, member_of, at_front & (completed < enqueued))
        behind = ~at_front & stands[member_of]
        self.waited_for[rows[behind]] = True
        # A member that stands in an older collective of the same group waits for yet others, not for the front.
        inside = np.flatnonzero(at_front & (completed < enqueued))
        self.mismatched[rows[inside[_minority(member_of[inside], op[inside])]]] = True
        if self.waiting.any() and not self.waited_for.any():
            # Somebody may never have entered the group at all in this generation: then it is not in that rank's record.
            self.waited_for = ~self.waiting
        self.roots = self.waited_for & ~self.waiting


def _minority(group: NDArray[np.int64], op: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Of each entry, whether most entries of its group have another `op`."""
    if not len(group):
        return np.zeros(0, bool)
    order = np.lexsort((op, group))
    sorted_group, sorted_op = group[order], op[order]
    starts = np.flatnonzero(np.r_[True, (sorted_group[1:] != sorted_group[:-1]) | (sorted_op[1:] != sorted_op[:-1])])
    counts = np.diff(np.r_[starts, len(group)])
    ranked = np.lexsort((-counts, sorted_group[starts]))  # of each group the most frequent first
    first = np.r_[True, np.diff(sorted_group[starts][ranked]) != 0]
    small = np.ones(len(starts), bool)
    small[ranked[first]] = False
    minority = np.empty(len(group), bool)
    minority[order] = np.repeat(small, counts)
    return minority


def _listed(ranks: NDArray[np.int64]) -> str:
    more = f" and {len(ranks) - 20} more" if len(ranks) > 20 else ""
    return ", ".join(map(str, ranks[:20].tolist())) + more


def _waiting_for(window: Window, rank: int) -> list[Fact]:
    """How far the rank is behind in the group where it lags most."""
    groups = window.record["groups"]
    best: tuple[int, int, int] | None = None
    for mine in groups[rank]:
        if not mine["id"]:
            continue
        others = groups[(groups["id"] == mine["id"])]
        front = int(others["enqueued"].max())
        waiting = int(((others["enqueued"] == front) & (others["completed"] < front)).sum())
        behind = front - int(mine["enqueued"])
        if behind > 0 and waiting and (best is None or behind > best[0]):
            best = (behind, front, waiting)
    if best is None:
        return []
    behind, front, waiting = best
    return [
        Fact(
            "collectives behind its group",
            float(behind),
            0.0,
            source=f"sequence numbers: {waiting} ranks stand in number {front}",
        )
    ]
