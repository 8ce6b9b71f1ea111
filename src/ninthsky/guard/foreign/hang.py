"""Who holds a foreign script up. The same judges, and patience where they rely on knowing the program.

Of our own ranks we know that nothing but a fault lets them rest. A foreign script may save, compile or evaluate for a minute
while the others wait; so a rank that merely does not arrive is named later than one that is frozen or calls something else.
"""

from __future__ import annotations

import numpy as np

from ninthsky.evidence import Fact
from ninthsky.guard.controller.fleet import Window
from ninthsky.guard.judges import Limits, Verdict
from ninthsky.guard.judges.hang import WaitFor, judge_frozen, judge_stuck


def judge_foreign_hang(window: Window, limits: Limits, stuck_seconds: float, ended: frozenset[int]) -> list[Verdict]:
    """`ended`: ranks whose process ended well; they may be waited for all the same."""
    frozen = [verdict for verdict in judge_frozen(window, limits) if not ended.intersection(verdict.ranks)]
    graph = WaitFor(window.record)
    if frozen or not graph.waiting.any():
        return frozen  # where nobody stands in a collective, nobody waits for anybody
    quiet = float(window.quiet[[rank for rank in range(window.ranks) if rank not in ended]].min(initial=np.inf))
    missing = sorted(rank for rank in ended if graph.waited_for[rank])
    if missing and quiet >= stuck_seconds:
        fact = Fact("no progress of the others", quiet, stuck_seconds, "s", "records")
        text = "process ended with status 0 while others wait for it in a collective"
        return [Verdict("exit", tuple(missing), text, (fact,), ("the card: the process ended well",), 0.8, onset=quiet)]
    if ended:
        return []
    return [verdict for verdict in judge_stuck(window, limits) if verdict.cause == "mismatch" or quiet >= stuck_seconds]
