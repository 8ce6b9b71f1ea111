"""Whole hosts: their agents are silent while the ranks of other hosts wait."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ninthsky.evidence import Fact
from ninthsky.guard.controller.fleet import Window
from ninthsky.guard.judges.hang import WaitFor
from ninthsky.guard.judges.verdict import Limits, Verdict
from ninthsky.guard.probe.record import Phase

BLOCKED_SECONDS = 1.0
ROW = 32  # hosts
MANY = 0.1  # of all hosts
PATIENCE = 5  # times host_seconds, for so many
OWN_WORK = (Phase.DATA, Phase.LOCAL, Phase.UPDATE)
TOGETHER_SECONDS = 1.5  # between two reports of one host on a large fleet, and some more


def maybe_deaf(silent: int, hosts: int, longest: float, host_seconds: float) -> bool:
    """Whether so many hosts, silent for `longest` seconds, are to be waited for: of more than a row of racks at once it may be
    this controller that stood still or lost its connections, and they come back within seconds."""
    return silent > max(ROW, MANY * hosts) and longest < PATIENCE * host_seconds


def judge_host(window: Window, limits: Limits) -> list[Verdict]:
    """One verdict, of all hosts that went silent: many at once are one fault of what they share (a rack, a switch).

    A silent agent alone is no fault: while training goes on, only its line to us is cut. Ranks of other hosts that are at work
    of their own wait for nobody: in long steps nothing moves for seconds either.
    """
    silent = [host for host, silence in window.host_silence.items() if silence >= limits.host_seconds]
    if not silent:
        return []
    heard = {host: silence for host, silence in window.host_silence.items() if silence < limits.host_seconds / 2}
    if not heard:
        return []  # nobody is left to compare with: the controller itself may be cut off
    others = np.array([host in heard for host in window.hosts])
    quiet = float(window.quiet[others].min())
    blocked = max(BLOCKED_SECONDS, window.longest_gap)
    if quiet < blocked or (quiet < limits.host_seconds + blocked and _at_work(window, others)):
        return []
    # Reports come now and then: of hosts that went together, some are past the limit first. Those on the way are waited for.
    between = [host for host, silence in window.host_silence.items() if host not in heard and silence < limits.host_seconds]
    longest = max(window.host_silence[host] for host in silent)
    if between and longest < limits.host_seconds + TOGETHER_SECONDS:
        return []
    if maybe_deaf(len(silent), len(window.host_silence), longest, limits.host_seconds):
        return []
    ranks = tuple(rank for rank, name in enumerate(window.hosts) if name in set(silent))
    many = len(silent) > 1
    facts = (
        Fact("no report from its agent", longest, limits.host_seconds, "s", "controller"),
        Fact("no progress on the ranks of other hosts", quiet, blocked, "s", "records"),
        Fact("ranks on it", ", ".join(map(str, ranks[:20])) + (f" and {len(ranks) - 20} more" if len(ranks) > 20 else "")),
    )
    ruled_out = (
        f"the controller's own network: {len(heard)} other hosts reported, the oldest {max(heard.values()):.1f} s ago",
        "one card: all ranks of the host went silent together",
    )
    text = (
        f"{len(silent)} hosts are lost or cut off together (rack, switch or power): their agents are silent and others wait"
        if many
        else "host is lost or cut off: its agent is silent and other hosts wait"
    )
    return [Verdict("host", ranks, text, facts, ruled_out, 0.9, host=", ".join(silent), onset=longest)]


def _at_work(window: Window, others: NDArray[np.bool_]) -> bool:
    """Whether any of these ranks does work of its own, and so has still to come to where others would wait for it."""
    own = others & window.known & np.isin(window.record["phase"], OWN_WORK)
    return bool((own & ~WaitFor(window.record).waiting).any()) if own.any() else False
