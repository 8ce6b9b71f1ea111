"""Who is stopped, who holds the others up: pure functions of readings and stacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ninthsky.evidence import Fact
from ninthsky.guard.judges.verdict import Verdict
from ninthsky.guard.passive.live.readings import DISK, STOPPED, Floats, Readings
from ninthsky.guard.passive.live.stacks import Stacks

FROZEN_SECONDS = 1.0  # a debugger or a profiler stops a process for moments
RAN = 1e-4  # seconds of processor time, below which a process did not run
BUSY = 0.02  # of the time between two samples, on a processor: the main thread does something
BUSY_SHARE = 0.25  # of the time for which the others waited: such a rank works (a checkpoint, an evaluation), if for long
BUSY_FACTOR = 8.0  # so much longer than the patience until a rank that works is told
NOBODY_FACTOR = 3.0  # likewise where all stand in one place: perhaps that is what a step of this job looks like
ONE_IN = 4  # of so many ranks one is named


def judge_stopped(readings: Readings) -> list[Verdict]:
    """Ranks in state T for FROZEN_SECONDS; nobody is blamed where all are."""
    end = readings.last(FROZEN_SECONDS)
    if end.span < 0.9 * FROZEN_SECONDS or end.place.shape[1] < 3:
        return []
    # Samples may fall into the pauses of one that is stopped again and again: what is stopped does not run at all.
    stopped = np.flatnonzero((end.share(STOPPED) == 1.0) & (end.ran[:, -1] - end.ran[:, 0] < RAN))
    if not len(stopped):
        return []
    source = f"/proc/PID/stat, {end.place.shape[1]} samples"
    if len(stopped) == len(readings.ranks) and len(stopped) > 1:
        facts = (Fact("ranks in state T", float(len(stopped)), source=source),)
        return [
            Verdict("unknown", (), "all ranks are stopped: somebody stopped the job", facts, ("a card",), 0.9, onset=end.span)
        ]
    at = Fact("process state", "T", "T", source=source)
    out = ("an exit: the process exists", "slow code: a stopped process runs none")
    return [
        Verdict("frozen", (readings.ranks[row],), "process is stopped (state T)", (at,), out, 1.0, onset=end.span)
        for row in stopped
    ]


def idle_seconds(readings: Readings, *, in_line: bool = True) -> Floats:
    """[ranks]: for how long each main thread has neither run nor, with `in_line`, stood in line for a processor, up to now."""
    if readings.place.shape[1] < 2:
        return np.zeros(len(readings.ranks))
    busy = np.diff(readings.ran + readings.queued * in_line, axis=1) > BUSY * np.diff(readings.times)
    newest = np.where(busy.any(axis=1), busy.shape[1] - busy[:, ::-1].argmax(axis=1), 0)
    return readings.times[-1] - readings.times[newest]


def stalled_seconds(readings: Readings) -> float:
    """For how long all ranks but at most one have done nothing: of three and more one may work while the others wait for it."""
    idle = np.sort(idle_seconds(readings))
    return float(idle[1] if len(idle) >= 3 else idle[0]) if len(idle) else 0.0


@dataclass(frozen=True)
class Standing:
    """Where a rank stands: equal `key` is the same place. `waits`: for others, as far as can be told."""

    key: str
    waits: bool
    head: str
    text: str
    still: bool  # it was there at both looks


def standing(readings: Readings, before: Stacks, after: Stacks) -> list[Standing]:
    """Of each rank: by its stacks where all have some, else by the kernel's name of the wait."""
    if all(rank in before.of and rank in after.of for rank in readings.ranks):
        return [
            Standing(
                str(after.of[r].frames), after.of[r].waits, after.of[r].head, str(after.of[r]), before.of[r] == after.of[r]
            )
            for r in readings.ranks
        ]
    # Without stacks: the usual wait is that for others, if it is anything.
    usual = readings.waiting()
    names = [readings.names[number] for number in readings.place[:, -1]]
    return [Standing(name, name == usual, _place_text(name), _place_text(name), True) for name in names]


@dataclass(frozen=True)
class Stall:
    """No progress for `seconds`, with the two looks at stacks.

    `busy`: ranks that work, by other threads, children, or bytes that they read and write. `by_steps`: the logs' step numbers
    stand still while main threads may spin (CUDA waits that way).
    """

    seconds: float
    patience: float
    before: Stacks
    after: Stacks
    world: int  # ranks of the whole job; those of other hosts are not seen
    busy: frozenset[int] = frozenset()
    by_steps: bool = False

    @property
    def fact(self) -> Fact:
        if self.by_steps:
            return Fact("no new step in the logs", self.seconds, self.patience, "s", "step numbers")
        return Fact("no processor time on all other ranks", self.seconds, self.patience, "s", "/proc/PID/schedstat")


def judge_stall(readings: Readings, stall: Stall) -> Verdict | None:
    """Who holds the others up? None: wait, and look again."""
    ranks, seconds, after = readings.ranks, stall.seconds, stall.after
    at = standing(readings, stall.before, after)
    odd = _odd(at, ranks)
    base: tuple[Fact, ...] = (stall.fact, *_groups(at, ranks))
    if after.trouble:
        base += (Fact("missing", after.trouble),)
    if len(odd) == 1:
        return _of_one(readings, stall, at, ranks.index(odd[0]), base)
    if seconds < NOBODY_FACTOR * stall.patience:
        return None
    if odd:
        text = f"{len(odd)} ranks at once stand elsewhere than the others"
    elif stall.world > len(ranks):
        text = "all ranks of this host wait in the same place: for a rank of another host, or for the network"
    elif all(place.waits for place in at):
        text = "every rank waits in the same place and none goes on: the device, a link or the transport"
    else:
        text = "every rank stands in the same place, and none waits for another"
    return Verdict("unknown", (), text, base, ("a stopped or dead process: all live",), 0.5, onset=seconds)


def _of_one(readings: Readings, stall: Stall, at: Sequence[Standing], row: int, base: tuple[Fact, ...]) -> Verdict | None:
    """One rank stands elsewhere than the others."""
    rank, seconds = readings.ranks[row], stall.seconds
    letter = readings.names[readings.place[row, -1]]
    if letter == STOPPED:
        return None  # that is told by itself
    span = min(seconds, readings.span)
    own = 1.0 - min(
        1.0, float(idle_seconds(readings, in_line=False)[row]) / max(span, 1e-9)
    )  # how far into the stall it still did something
    works = rank in stall.busy or (own >= BUSY_SHARE and not stall.by_steps)
    if works and seconds < BUSY_FACTOR * stall.patience:
        return None
    if not works and not at[row].still:
        return None
    seen = bool(stall.after.of)
    facts = (Fact("it stands in", at[row].text, source="py-spy" if seen else "/proc/PID/wchan"), *base)
    out = ("an exit: the process exists", "the network: the others wait, this one stands elsewhere")
    if letter == DISK:
        text = "process hangs in the kernel (state D: disk, network file system or driver)"
        return Verdict("stuck", (rank,), text, facts, out, 0.85, onset=seconds)
    if seen and all(place.waits for place in at):
        text = (
            f"ranks wait in different places: rank {rank} not where the others do; an error of the program, or a lost message"
        )
        return Verdict("mismatch", (), text, facts, ("a stopped or dead process: all live",), 0.6, onset=seconds)
    text = "the others wait for it while it works on" if works else "main thread is stuck: the others wait for it"
    confidence = 0.9 if seen and not works else 0.6
    return Verdict("stuck", (rank,), f"{text}, in {at[row].head}", facts, out, confidence, onset=seconds)


def _odd(at: Sequence[Standing], ranks: Sequence[int]) -> tuple[int, ...]:
    """Ranks that stand elsewhere: those that do not wait while the others do, else those without the usual stack."""
    apart = tuple(rank for rank, place in zip(ranks, at, strict=True) if not place.waits)
    if apart and len(apart) < len(ranks) and len(apart) <= max(1, len(ranks) // ONE_IN):
        return apart
    keys = [place.key for place in at]
    usual = max(keys, key=keys.count)
    if 2 * keys.count(usual) <= len(keys):
        return ()
    return tuple(rank for rank, key in zip(ranks, keys, strict=True) if key != usual)


def _groups(at: Sequence[Standing], ranks: Sequence[int]) -> tuple[Fact, ...]:
    by_key: dict[str, list[int]] = {}
    for rank, place in zip(ranks, at, strict=True):
        by_key.setdefault(place.key, []).append(rank)
    text = {place.key: place.text for place in at}
    largest = sorted(by_key.items(), key=lambda entry: -len(entry[1]))[:4]
    return tuple(
        Fact(f"stack of rank{'s' if len(who) > 1 else ''} {', '.join(map(str, who))}", text[key][:300]) for key, who in largest
    )


def _place_text(name: str) -> str:
    known = {"R": "running", STOPPED: "stopped (T)", DISK: "uninterruptible wait (D)"}
    return known.get(name, f"wait in {name.removeprefix('S:')}")
