"""The rank that the others wait for at every step, by what main threads do: most work of its own, least waiting.

In step with each other, all ranks take the same number of steps in any span of time, so the ratio of their processor times is
the ratio of their work, whatever the steps' length and however crowded the machine: time in line for a processor is counted
apart by the kernel. A rank that a neighbour keeps from running therefore is not taken for slow; it is told as the host's case.

Two clocks. *processor*: the main thread's own (exact). *own*: that, plus the sampled share of time in which it was stopped, in
disk waits, or in another kind of wait than the one in which ranks of this job mostly stand (the collective). Blind: main
threads that spin while they wait (CUDA's default) run all the time, and waits of one kind (a lock) look alike; then nobody is
named.
"""

from __future__ import annotations

import numpy as np

from ninthsky.evidence import Fact
from ninthsky.guard.judges.slow import Reading, read_clock
from ninthsky.guard.judges.verdict import Limits, Verdict
from ninthsky.guard.passive.live.readings import DISK, STOPPED, Floats, Readings

SPAN = 3.0  # seconds of one reading of a clock
SPANS = 8  # readings at least; twice as many for the own clock, whose shares are sampled
MOST_SPANS = 32
WAITS_LESS = 0.03  # of the time: how much less than its peers' median a slow rank waits, at least
OTHERS_WAIT = 0.05  # of the time: where peers wait less, nobody holds them up
QUEUED = 0.15  # of the time, in line for a processor, beyond the peers' median: a neighbour
QUEUED_SPANS = 16  # it must last


def judge_slow(readings: Readings, threshold: float) -> list[Verdict]:
    """One slow rank, or one that other work on the host keeps from running (then nobody is blamed); mostly nothing.

    `threshold`: its clock against the median of all. Of two ranks nobody can tell which one is normal.
    """
    if len(readings.ranks) < 3:
        return []
    spans = SPANS
    while spans <= MOST_SPANS and readings.span >= spans * SPAN:
        cut = readings.last(spans * SPAN)
        ran, queued = _in_spans(cut.times, cut.ran, spans), _in_spans(cut.times, cut.queued, spans)
        own = ran + _elsewhere(cut, spans)
        waits = 1.0 - (own + queued).mean(axis=1) / SPAN
        if (found := _stands_out("processor", ran, waits, threshold)) is not None:
            return [_slow(cut, found, ran, own, queued, waits, threshold)]
        if spans >= 2 * SPANS and (found := _stands_out("own", own, waits, threshold)) is not None:
            return [_slow(cut, found, ran, own, queued, waits, threshold)]
        if spans >= QUEUED_SPANS and (verdict := _kept_from_running(cut, ran, queued, waits)) is not None:
            return [verdict]
        spans *= 2
    return []


def _in_spans(times: Floats, total: Floats, spans: int) -> Floats:
    """[ranks, spans]: seconds added in each of the last `spans` spans."""
    edges = times[-1] - SPAN * np.arange(spans, -1, -1)
    return np.diff(np.stack([np.interp(edges, times, row) for row in total]), axis=1)


def _elsewhere(readings: Readings, spans: int) -> Floats:
    """[ranks, spans]: seconds stopped, in disk waits, and in other waits than the usual one; as sampled."""
    usual = readings.waiting()
    # "S:0" was waking up when it was looked at: neither here nor there.
    own = [
        n
        for n, name in enumerate(readings.names)
        if name in {STOPPED, DISK} or (name[:2] == "S:" and name not in {usual, "S:0"})
    ]
    inside = np.isin(readings.place, own)
    number = np.clip(np.ceil((readings.times[-1] - readings.times) / SPAN - 1e-9).astype(int) - 1, -1, spans - 1)
    found = np.zeros((len(readings.ranks), spans))
    for span in range(spans):
        chosen = inside[:, number == spans - 1 - span]
        if chosen.shape[1]:
            found[:, span] = SPAN * chosen.mean(axis=1)
    return found


def _stands_out(clock: str, seconds: Floats, waits: Floats, threshold: float) -> Reading | None:
    if float(np.median(seconds)) <= 0.0:
        return None  # most stand still: another judge's case
    # Of the few ranks of one host, so many steps never make less than `threshold` enough: rank 0 often has a little more to do.
    limits = Limits(slow_ratio=threshold, slow_steps=MOST_SPANS)
    read = read_clock(clock, 1000 * seconds, np.zeros((len(seconds), 0), np.int64), limits)
    if read is None:
        return None
    for reading in read.slowest():
        peers = np.delete(waits, reading.rank)
        waits_least = waits[reading.rank] <= min(float(peers.min()), float(np.median(peers)) - WAITS_LESS)
        if reading.stands_out and waits_least and float(np.median(peers)) >= OTHERS_WAIT:
            return reading
    return None


def _slow(cut: Readings, found: Reading, ran: Floats, own: Floats, queued: Floats, waits: Floats, threshold: float) -> Verdict:
    row, rank = found.rank, cut.ranks[found.rank]
    others = np.arange(len(cut.ranks)) != row
    stopped = float(cut.share(STOPPED)[row])
    ratio = float(np.median(ran[row]) / max(1e-9, np.median(ran[others])))
    share = own.mean(axis=1) / SPAN
    facts: tuple[Fact, ...] = (
        Fact(
            f"{found.clock} time of its main thread against the median",
            found.ratio,
            threshold,
            "x",
            f"{cut.span:.0f} s of /proc",
        ),
        Fact("the same against the second slowest", found.margin, 1 + (found.limit - 1) / 2, "x"),
        Fact("share of the spans over the threshold", found.share, 0.75, "", f"{found.steps} spans of {SPAN:g} s"),
        Fact("share of the time that it waits", float(waits[row]), float(np.median(waits[others])), "", "others': beside"),
        Fact(
            "in line for a processor",
            float(queued[row].mean() / SPAN),
            float(np.median(queued[others]) / SPAN),
            "",
            "others': beside",
        ),
    )
    if found.clock == "processor":
        text = f"its main thread does {ratio:.2f} x the work of its peers, and they wait for it"
        ruled_out = (
            "a neighbour that takes its processor: its own processor time is what is longer, time in line is counted apart"
        )
    elif stopped >= 0.3 * (share[row] - float(np.median(share[others]))):
        facts += (Fact("share of the time in state T", stopped, 0.0, "", "/proc/PID/stat"),)
        text = "it is stopped again and again (state T), and its peers wait for it"
        ruled_out = "more work: its processor time is as its peers'"
    else:
        text = f"it waits for something of its own ({_own_wait(cut, row)}) while its peers wait for it"
        ruled_out = "more work: its processor time is as its peers'"
    away = "noise: it exceeded the threshold in at least three of four spans, well apart from the second slowest"
    return Verdict("slow", (rank,), text, facts, (ruled_out, away), 0.9 if found.clock == "processor" else 0.8, onset=cut.span)


def _own_wait(cut: Readings, row: int) -> str:
    usual = cut.waiting()
    counts = np.bincount(cut.place[row], minlength=len(cut.names))
    waits = [
        (int(counts[n]), name) for n, name in enumerate(cut.names) if name[:2] in {"S:", DISK} and name not in {usual, "S:0"}
    ]
    name = max(waits, default=(0, "?"))[1]
    return "disk, state D" if name == DISK else name.removeprefix("S:")


def _kept_from_running(cut: Readings, ran: Floats, queued: Floats, waits: Floats) -> Verdict | None:
    share = queued.mean(axis=1) / SPAN
    row = int(share.argmax())
    peers = np.delete(share, row)
    more = float(share[row] - np.median(peers))
    lasting = ((queued[row] - np.median(np.delete(queued, row, axis=0), axis=0)) / SPAN > QUEUED / 2).mean() >= 0.75
    if more < QUEUED or share[row] < 2 * float(peers.max()) or not lasting:
        return None
    if waits[row] > min(float(np.delete(waits, row).min()), float(np.median(np.delete(waits, row))) - WAITS_LESS):
        return None
    facts = (
        Fact("in line for a processor", float(share[row]), float(np.median(peers)), "", "share of the time; others': beside"),
        Fact(
            "share of the time that it waits", float(waits[row]), float(np.median(np.delete(waits, row))), "", "others': beside"
        ),
    )
    text = f"other work on this host keeps rank {cut.ranks[row]} from running, and its peers wait for it: no card is to blame"
    own = "more work: its processor time is as its peers'"
    return Verdict("host", (), text, facts, (own,), 0.7, onset=cut.span)
