"""The right to act: a term, granted for two seconds at a time by the agents of at least half of the voting hosts.

Two controllers that cannot hear each other must not both give orders. So a controller of a job with a standby acts only while
agents grant it the lease, and each order carries its term: agents obey the highest term they know, and nobody else.

- To **win** a term, more than half of the voters must grant it. A voter grants a higher term when the lease that it granted
  before has lapsed by its own clock, or when the asker is the holder itself, started again.
- To **keep** it, half of them is enough: a tie goes to whoever holds the term. With two hosts, losing one does not stop the
  controller, and the standby cannot win with the other one alone.
- Voters are the first fifteen live hosts of the generation. Another set is proposed first: it counts once each host in it has
  heard of it, and until then a challenger who hears of the proposal needs more than half of both. Sets are numbered by the
  term in which they were proposed, then by generation.

Times are those at which a claim was *sent*: the holder's lease ends before its voters' does, whatever the network did.
Only rates of clocks are compared, never two hosts' clocks. Nothing here knows sockets.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

from ninthsky.guard.protocol import Claim, Standing

SECONDS = 2.0
RENEWALS = 4  # in that time
VOTERS = 15
PATIENCE = 30.0  # a standby that was never led by anybody waits so long before it leads itself


class Lease:
    """One controller's view of it. `me` is its name in the key files. `alone`: a person vouches that the other one is dead.

    `waits`: lets the other one lead first, while nobody has led yet.
    """

    def __init__(
        self,
        me: str,
        hosts: Sequence[str],
        *,
        waits: bool = False,
        alone: bool = False,
        seconds: float = SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.me, self.seconds, self.alone = me, seconds, alone
        self.term = 0  # the one that was claimed last
        self.leading = False
        self.superseded_by = ""
        self._clock = clock
        self._set, self._voters = 0, tuple(hosts[:VOTERS])
        self._next: tuple[int, tuple[str, ...]] | None = None  # declared, but not known to each of its hosts yet
        self._standing: dict[str, tuple[float, Standing]] = {}
        self._granted: dict[str, float] = {}  # voter -> when the claim that it granted was sent
        self._sent: dict[int, float] = {}
        self._number = time.time_ns()  # no answer to one that bore this name before is taken for one to us
        self._patient = waits
        self._claim_at = clock() + (PATIENCE if waits else 0.0)

    @property
    def voters(self) -> tuple[str, ...]:
        return self._voters

    def holds(self) -> bool:
        """Whether this controller may act now."""
        return self.leading and not self.superseded_by and 2 * self._grants(self._voters) >= self._needed_of()

    def declare(self, generation: int, hosts: Sequence[str]) -> None:
        """The holder proposes a new set of voters; `generation` grows with each."""
        voters, number = tuple(hosts[:VOTERS]), (self.term << 32) + generation
        if number > max(self._set, self._next[0] if self._next else 0) and voters:
            self._next = (number, voters)
            self._settle()

    def heard(self, host: str, standing: Standing) -> None:
        """What a voter has granted, and to whom."""
        self._standing[host] = (self._clock(), standing)
        if self._patient and standing.term:  # somebody has led
            self._patient, self._claim_at = False, self._clock()
        if not self.leading:
            if standing.set > self._set:
                self._set, self._voters = standing.set, tuple(standing.voters)
            if standing.next_set > max(self._set, self._next[0] if self._next else 0):
                self._next = (standing.next_set, tuple(standing.next_voters))
            if self._next is not None and self._next[0] <= self._set:
                self._next = None
        if self.leading and standing.term > self.term and standing.holder != self.me:
            self.superseded_by = standing.holder
        if standing.holder == self.me and standing.term == self.term and standing.number in self._sent:
            self._granted[host] = max(self._granted.get(host, 0.0), self._sent[standing.number])
        self._settle()
        if not self.leading and self.term:
            won = all(2 * self._grants(voters) > len(voters) for voters in self._sets())
            self.leading = won or (self.alone and self._grants(self._voters) > 0)

    def claim(self) -> Claim | None:
        """What is to be sent to the voters now; None where it is not time."""
        now = self._clock()
        if now < self._claim_at or self.superseded_by or not (self.leading or self._free(now)):
            return None
        if self.leading:
            self._claim_at = now + self.seconds / RENEWALS
        else:
            self.term = 1 + max([self.term, *(standing.term for _, standing in self._standing.values())])
            self._claim_at = now + self.seconds * random.uniform(0.3, 0.7)  # so that two do not take turns for ever
            self._granted.clear()
        self._number += 1
        self._sent = {number: at for number, at in self._sent.items() if now - at < self.seconds} | {self._number: now}
        proposed, voters = self._next or (0, ())
        return Claim(self.term, self._number, self._set, list(self._voters), proposed, list(voters))

    def asked(self) -> list[str]:
        """Hosts that claims go to."""
        return list(dict.fromkeys([*self._voters, *(self._next[1] if self._next else ())]))

    def _sets(self) -> list[tuple[str, ...]]:
        return [self._voters, *([self._next[1]] if self._next else [])]

    def _grants(self, voters: tuple[str, ...]) -> int:
        fresh = self._clock() - self.seconds
        return sum(self._granted.get(host, fresh) > fresh for host in voters)

    def _needed_of(self) -> int:
        return 1 if self.alone else len(self._voters)

    def _free(self, now: float) -> bool:
        """Whether enough voters would grant a new term, by what they said last. No claim disturbs a holder that is well."""
        known = [self._standing[host] for host in self._voters if host in self._standing]
        free = [s for at, s in known if now - at < self.seconds and (s.holder == self.me or s.left <= now - at)]
        return 2 * len(free) > len(self._voters) or (self.alone and bool(free))

    def _settle(self) -> None:
        if not self.leading or self._next is None:
            return
        known = [self._standing[host][1] for host in self._next[1] if host in self._standing]
        if len(known) == len(self._next[1]) and all(self._next[0] in (s.set, s.next_set) for s in known):
            (self._set, self._voters), self._next = self._next, None
