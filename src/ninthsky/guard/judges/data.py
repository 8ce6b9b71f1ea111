"""The input does not come: one rank's loader, one host's mount, or the storage behind all of them. Seldom a card's fault.

A stall is seen while it lasts, by the ranks that stand in phase DATA while the others wait for them. Loading that only takes
longer is seen in the records' data times, against the same ranks' earlier steps and against their peers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ninthsky.evidence import Fact
from ninthsky.guard.controller.fleet import Floats, Window
from ninthsky.guard.judges.hang import BUSY_FACTOR, BUSY_SHARE, MANY, SETTLING_STEPS, WaitFor, judged_hosts, stuck_limit
from ninthsky.guard.judges.verdict import Limits, Verdict
from ninthsky.guard.probe.record import Phase

FLOOR_MS = 50.0  # data times of a step under this are not looked at
SHARE = 0.25  # of a step's own work, from which on loading matters
GROWN = 3.0  # times what it was before
APART = 3.0  # times the peers' median
PERSISTENCE = 0.75  # share of the steps


def judge_data(window: Window, limits: Limits) -> list[Verdict]:
    """Ranks that wait for their data and hold the others up.

    A rank alone, or those of one host, are named, and other cards take their places without blame: the loader or the mount goes
    with the process and the host. Ranks of several hosts together are the storage's matter: nobody is moved.
    """
    limit, quiet = stuck_limit(window, limits), float(window.quiet.min(initial=np.inf))
    if quiet < limit or not window.known.all():
        return []
    loading = window.record["phase"] == Phase.DATA
    if not loading.any() or not judged_hosts(window, limits).all():
        return []
    graph = WaitFor(window.record)
    if graph.mismatched.any():
        return []
    behind = loading if loading.all() else graph.roots
    if not behind.any() or not loading[behind].all():
        return []  # somebody is behind for another reason
    ranks = tuple(map(int, np.flatnonzero(behind)))
    hosts = sorted({window.hosts[rank] for rank in ranks})
    waiting = int(graph.waiting.sum())
    facts = (
        Fact("no progress anywhere", quiet, limit, "s", "steps, phases and collectives of all ranks"),
        Fact("ranks that wait for their data", float(len(ranks)), None, "", f"phase DATA, on {len(hosts)} hosts"),
        Fact("ranks that wait for them in a collective", float(waiting), None, "", "sequence numbers"),
    )
    together = len(hosts) > 1 and len(ranks) > max(1, min(window.ranks // 4, MANY))
    if together:
        if window.steps_seen < SETTLING_STEPS and quiet < BUSY_FACTOR * limit:
            return []  # the first batches of all come when they come
        text = (
            f"{len(ranks)} of {window.ranks} ranks on {len(hosts)} hosts wait for their data together: the storage, not a card"
        )
        same = (f"one card, one host: {len(hosts)} hosts stand at the same place",)
        return [Verdict("data", (), text, facts, same, 0.8, onset=quiet, playbook="filesystem_stall")]
    busy = (window.busy_cpu[list(ranks)] >= BUSY_SHARE * quiet) | np.array([window.state[rank] == "D" for rank in ranks])
    if busy.any() and quiet < BUSY_FACTOR * limit:
        return []  # it reads or decodes, if slowly
    ruled_out = (
        "the storage behind all: others have their data and wait in a collective",
        "a frozen process: every heartbeat thread still beats, so only the main thread waits",
    )
    whole = len(hosts) == 1 and len(ranks) > 1
    where = f"the ranks of host {hosts[0]} wait for their data" if whole else "it waits for its data, its peers for it"
    cause = "filesystem_stall" if whole else "dataloader"
    return [Verdict("data", (rank,), where, facts, ruled_out, 0.8, onset=quiet, playbook=cause) for rank in ranks]


def judge_loading(window: Window, limits: Limits) -> list[Verdict]:
    """Loading that takes a good share of each step and more than before, or more than the peers': advice, nobody is moved."""
    newest = window.record["data"]
    steps = limits.slow_steps
    if window.ranks == 0 or not window.known.all() or float(newest.max()) < FLOOR_MS:
        return []
    if window.steps_seen < SETTLING_STEPS + 2 * steps or window.data.shape != window.local_wall.shape:
        return []
    seen = min(window.data.shape[1], window.steps_seen - SETTLING_STEPS)
    late, early = window.data[:, -steps:], window.data[:, -seen:-steps]
    if np.isnan(late).any() or np.isnan(early).any():
        return []
    now = np.median(late, axis=1).astype(np.float64)
    work = max(float(np.median(window.local_wall[:, -steps:])), 1e-9)
    heavy = (now >= FLOOR_MS) & (now >= SHARE * work)
    if not heavy.any():
        return []
    usual, before = float(np.median(now)), float(np.median(early))
    if heavy.mean() > 0.5:
        grown = usual >= GROWN * max(before, 1.0) and float((np.median(late, axis=0) > GROWN * before).mean()) >= PERSISTENCE
        return [_together(window, usual, before, work, steps)] if grown else []
    apart = heavy & (now >= APART * max(usual, 1.0)) & ((late > APART * np.median(late, axis=0)).mean(axis=1) >= PERSISTENCE)
    ranks = np.flatnonzero(apart)
    if not len(ranks) or len(ranks) > max(1, min(window.ranks // 4, MANY)):
        return []
    return _alone(window, ranks, now, usual, work, steps)


def _together(window: Window, usual: float, before: float, work: float, steps: int) -> Verdict:
    source = f"records, median of {steps} steps and {window.ranks} ranks"
    facts = (
        Fact("data time of a step", usual, GROWN * max(before, 1.0), "ms", source),
        Fact("its own work in a step", work, None, "ms", source),
    )
    text = f"loading takes {usual:.0f} ms of each step on most ranks, {before:.0f} ms before: the storage or the source"
    ruled_out = ("one card or host: most ranks load as slowly",)
    hosts = window.hosts[0] if len(set(window.hosts)) == 1 else "all"
    return Verdict("warning", (), text, facts, ruled_out, 0.8, host=hosts, playbook="filesystem_stall")


def _alone(window: Window, ranks: NDArray[np.int64], now: Floats, usual: float, work: float, steps: int) -> list[Verdict]:
    """Each rank by itself, but those of one host as the host."""
    verdicts = []
    by_host: dict[str, list[int]] = {}
    for rank in map(int, ranks):
        by_host.setdefault(window.hosts[rank], []).append(rank)
    for host, mine in by_host.items():
        source = f"records, median of {steps} steps"
        slowest = max(mine, key=lambda rank: now[rank])
        facts = (
            Fact("data time of a step", float(now[slowest]), APART * max(usual, 1.0), "ms", source),
            Fact("the peers' median", usual, None, "ms", source),
            Fact("own work in a step", work, None, "ms", source),
        )
        ruled_out = ("the storage behind all: the peers load as usual", "the card: loading is the host's work")
        if len(mine) > 1:
            text = (
                f"loading takes {now[slowest]:.0f} ms of each step on {len(mine)} ranks of this host, {usual:.0f} ms elsewhere"
            )
            verdicts.append(Verdict("warning", (), text, facts, ruled_out, 0.8, host=host, playbook="filesystem_stall"))
        else:
            text = f"its loader takes {now[slowest]:.0f} ms of each step, its peers' {usual:.0f} ms"
            verdicts.append(Verdict("warning", (slowest,), text, facts, ruled_out, 0.8, host=host, playbook="dataloader"))
    return verdicts
