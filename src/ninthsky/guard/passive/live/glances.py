"""The slow rank that /proc cannot tell: it waits for data or a lock, which to the kernel looks like the wait for a collective.

Stacks of all ranks now and then tell where each waits. Seldom at first; where one rank seems to wait for something of its own,
more often, and only those later glances are judged: what made us look is not evidence.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ninthsky.evidence import Fact
from ninthsky.guard.judges.verdict import Verdict
from ninthsky.guard.passive.live.stacks import Stacks

SELDOM, OFTEN = 15.0, 2.5  # seconds between glances
SUSPECT, JUDGED = 8, 24  # glances in a row that raise a suspicion, and that confirm it
LASTS = 2 * (SUSPECT * SELDOM + JUDGED * OFTEN)  # seconds: a verdict stands until two rounds did not confirm it
APART = 0.3  # share of the glances in which it waits for its own, beyond any other rank's
PEERS_WAIT = 0.3  # median share in which the others wait for others


@dataclass
class Glances:
    """Of one crew. `due` says when the next is wanted (monotonic seconds)."""

    ranks: tuple[int, ...]
    due: float = 0.0
    _seldom: deque[Stacks] = field(default_factory=lambda: deque(maxlen=SUSPECT))
    _often: list[Stacks] = field(default_factory=list)
    _suspected: bool = False

    def forget(self, now: float) -> None:
        """The job stood, or stands: begin anew."""
        self._seldom.clear()
        self._often.clear()
        self._suspected = False
        self.due = now + SELDOM

    def take(self, stacks: Stacks) -> Verdict | None:
        """One more glance; a verdict where the suspicion holds."""
        if set(stacks.of) != set(self.ranks):
            self.forget(stacks.at)
            return None
        if not self._suspected:
            self._seldom.append(stacks)
            self._suspected = len(self._seldom) == SUSPECT and _apart(self.ranks, self._seldom) is not None
            self.due = stacks.at + (OFTEN if self._suspected else SELDOM)
            return None
        self._often.append(stacks)
        self.due = stacks.at + OFTEN
        if len(self._often) < JUDGED:
            return None
        row = _apart(self.ranks, self._often)
        verdict = None if row is None else _verdict(self.ranks, row, self._often)
        self.forget(stacks.at)
        return verdict


def _shares(ranks: Sequence[int], glances: Sequence[Stacks]) -> tuple[np.ndarray, np.ndarray]:
    """[ranks]: shares of the glances in which it waits for its own, and for others."""
    idle = np.array([[rank not in each.active for rank in ranks] for each in glances])
    waits = np.array([[each.of[rank].waits for rank in ranks] for each in glances])
    return (idle & ~waits).mean(axis=0), (idle & waits).mean(axis=0)


def _apart(ranks: Sequence[int], glances: Sequence[Stacks]) -> int | None:
    """The row of the one rank that waits for its own much more than any other, while they wait for others; else None."""
    own, others = _shares(ranks, glances)
    row = int(own.argmax())
    peers = np.delete(own, row)
    if len(ranks) < 3 or own[row] - float(peers.max()) < APART or float(np.median(np.delete(others, row))) < PEERS_WAIT:
        return None
    return row


def _verdict(ranks: Sequence[int], row: int, glances: Sequence[Stacks]) -> Verdict:
    own, others = _shares(ranks, glances)
    rank = ranks[row]
    places = Counter(each.of[rank] for each in glances if rank not in each.active and not each.of[rank].waits)
    where = places.most_common(1)[0][0]
    source = f"{len(glances)} stacks by py-spy"
    facts = (
        Fact(
            "share of the time that it waits for its own",
            float(own[row]),
            float(np.delete(own, row).max()),
            "",
            f"others': beside; {source}",
        ),
        Fact("share of the time that others wait for others", float(np.median(np.delete(others, row))), PEERS_WAIT, "", source),
        Fact("it waits mostly in", str(where)[:300], source="py-spy"),
    )
    text = f"it waits for something of its own, in {where.head}, while its peers wait for it"
    out = ("more work: its processor time is as its peers'",)
    return Verdict("slow", (rank,), text, facts, out, 0.75, onset=glances[-1].at - glances[0].at)
