"""A whole host: its agent is silent while the ranks of other hosts wait."""

from __future__ import annotations

import numpy as np

from ninthsky.evidence import Fact
from ninthsky.guard.fleet import Window
from ninthsky.guard.judges.verdict import Limits, Verdict

BLOCKED_SECONDS = 1.0


def judge_host(window: Window, limits: Limits) -> list[Verdict]:
    """One verdict per silent host. A silent agent alone is no fault: while training goes on, only its line to us is cut."""
    verdicts = []
    for host, silence in window.host_silence.items():
        if silence < limits.host_seconds:
            continue
        others = np.array([name != host and window.host_silence[name] < limits.host_seconds / 2 for name in window.hosts])
        if not others.any():
            continue  # nobody is left to compare with: the controller itself may be cut off
        quiet = float(window.quiet[others].min())
        if quiet < BLOCKED_SECONDS:
            continue
        ranks = tuple(rank for rank, name in enumerate(window.hosts) if name == host)
        heard = max(window.host_silence[name] for name, other in zip(window.hosts, others, strict=True) if other)
        facts = (
            Fact("no report from its agent", silence, limits.host_seconds, "s", "controller"),
            Fact("no progress on the ranks of other hosts", quiet, BLOCKED_SECONDS, "s", "records"),
            Fact("ranks on it", ", ".join(map(str, ranks))),
        )
        ruled_out = (
            f"the controller's own network: other hosts reported {heard:.1f} s ago",
            "one card: all ranks of the host went silent together",
        )
        verdicts.append(
            Verdict(
                "host",
                ranks,
                "host is lost or cut off: its agent is silent and other hosts wait",
                facts,
                ruled_out,
                0.9,
                host=host,
                onset=silence,
            )
        )
    return verdicts
