"""Whom an agent obeys: the controller that holds the highest term it knows of (see controller/lease.py)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ninthsky.guard.controller.lease import SECONDS, VOTERS
from ninthsky.guard.keys import CONTROLLER
from ninthsky.guard.protocol import Claim, Standing

BEAT_SECONDS = 0.5  # between two words to a controller that does not lead


class Allegiance:
    """One voter's memory. With a single controller nobody claims anything: term 0 is its."""

    def __init__(
        self, hosts: Sequence[str], contested: bool, seconds: float = SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.term, self.holder = 0, "" if contested else CONTROLLER
        self._until, self._seconds, self._clock = 0.0, seconds, clock
        self._set, self._voters = 0, list(hosts[:VOTERS])
        self._next: tuple[int, list[str]] = (0, [])

    def claimed(self, who: str, claim: Claim) -> Standing:
        """Grants or refuses; the answer says which."""
        now = self._clock()
        if claim.term == self.term:
            granted = who == self.holder
        else:
            granted = claim.term > self.term and (who == self.holder or now >= self._until)
        if granted:
            self.term, self.holder, self._until = claim.term, who, now + self._seconds
            if claim.set > self._set:
                self._set, self._voters = claim.set, claim.voters
            self._next = max(self._next, (claim.next_set, claim.next_voters))
            if self._next[0] <= self._set:
                self._next = (0, [])
        return self.standing(claim.number)

    def obeys(self, who: str, term: int) -> bool:
        """Whether an order of that term counts. Who gives one under a higher term than is known here has won that."""
        if term > self.term:
            self.term, self.holder, self._until = term, who, self._clock() + self._seconds
        return term == self.term and who == self.holder

    def left(self) -> float:
        """Seconds for which the lease is granted still; 0 where it has lapsed."""
        return max(0.0, self._until - self._clock())

    def standing(self, number: int = 0) -> Standing:
        return Standing(self.term, self.holder, self.left(), number, self._set, self._voters, *self._next)
