"""Cards in doubt: taken out of use, tested by their agents, and back as a spare once they passed; and ways between hosts.

A card that was replaced because of what it computed, how fast, or what its host told of it is in doubt. One whose process was
only killed, frozen or stuck is not: its next process says more than a test. A test that cannot be run (no torch on that host)
leaves things as they are without tests; a card that failed twice is kept out either way.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ninthsky.evidence import Fact
from ninthsky.guard import protocol as p
from ninthsky.guard.controller.roster import Proc
from ninthsky.guard.faults import Fault

if TYPE_CHECKING:  # the state holds the suspects
    from ninthsky.guard.controller.state import JobState

NOT_IN_DOUBT = frozenset({"exit", "frozen", "stuck", "host", "data"})
TIMES = 3
CARD_SECONDS = 900.0  # for TIMES tests, and their process's end before; then a card counts as untested
LINK_SECONDS = 60.0
AT_ONCE = 16  # tests of spares under way in all
PAIRS = 4  # links tested because of one fault
SLOW_LINK = 0.5  # of the median of this job's other links
FEWEST_LINKS = 3
TICK_SECONDS = 1.0
ANY = -1  # whatever process is in the slot: it holds no rank, and is ended


@dataclass
class _Test:
    """One that was ordered. `told`: what each end of a link said."""

    number: int
    deadline: float
    fault: str
    card: str = ""
    link: tuple[str, str] = ("", "")
    token: bytes = b""
    hand: str = ""  # who ordered it by hand
    told: dict[str, p.Tested] = field(default_factory=dict)


class Suspects:
    """What the controller orders and hears of self-tests."""

    def __init__(self, state: JobState) -> None:
        self._state = state
        self._tests: dict[int, _Test] = {}
        self._number = 0
        self._links: deque[tuple[str, str, str]] = deque(maxlen=64)  # to be tested: two hosts, fault
        self._speeds: deque[float] = deque(maxlen=64)  # MB/s of links that were tested
        self._idle_at: dict[str, float] = {}  # card -> when it is tested again
        self._look_at = 0.0

    # -- what is doubted ------------------------------------------------------------------------------------------------

    def doubt(self, proc: Proc, fault: Fault) -> None:
        """The process's card was replaced because of a fault."""
        state = self._state
        told_by_host = fault.evidence.where.get("playbook") is not None
        if state.watch.selftest == "off" or proc.card in state.roster.kept_out:
            return
        if fault.cause in NOT_IN_DOUBT and not told_by_host:
            return
        state.roster.suspected.add(proc.card)
        state.journal.write("suspected", card=proc.card, fault=fault.id)
        self._order(proc.host, proc.slot, fault.id, after=proc.pid)

    def doubt_card(self, card: str, fault: str) -> None:
        """A card without a rank, of which its host told."""
        state, (host, slot) = self._state, card.split("/")
        if state.watch.selftest == "off" or card in state.roster.kept_out | state.roster.suspected or host in state.roster.lost:
            return
        state.roster.suspected.add(card)
        state.journal.write("suspected", card=card, fault=fault)
        self._order(host, int(slot), fault, after=ANY)

    def doubt_links(self, hosts: list[str], fault: Fault) -> None:
        """A collective broke or hung and no rank is behind it: their hosts' links are tested once ranks train again."""
        if self._state.watch.selftest != "off":
            pairs = list(itertools.pairwise(hosts))[:PAIRS]
            self._links.extend((one, other, fault.id) for one, other in pairs)

    def ordered(self, who: str, order: str, asked: float) -> None:
        """By a person: hosts whose cards are tested (none: all), beside what runs there; or `HOST:HOST` whose link is. `asked`
        is the moment by which the order is known again."""
        one, link, other = order.partition(":")
        live = set(self._state.roster.live())
        tests = []
        if link and {one, other} <= live and one != other:
            tests.append(self._order_link(one, other, "", who))
        elif not link:
            hosts = order.split()
            for spec in self._state.spec.hosts:
                if spec.name in live and (not hosts or spec.name in hosts):
                    slots = range(spec.slots + spec.spares)
                    tests += [self._order(spec.name, slot, "", hand=who, times=1) for slot in slots]
        self._state.tell("selftest.ordered", who=who, order=order, asked=asked, tests=tests)

    # -- what agents say ------------------------------------------------------------------------------------------------

    def serving(self, host: str, said: p.LinkServing) -> None:
        """The serving end of a link listens: now the other one."""
        test = self._tests.get(said.test)
        if test is not None and test.link[0] == host:
            address = self._state.spec.host(host).address
            self._state.send(test.link[1], p.LinkTest(test.number, test.token, address, said.port))

    def tested(self, host: str, said: p.Tested) -> None:
        """One test, or one end of a link's, has ended."""
        test = self._tests.get(said.test)
        if test is None or host not in {test.card.split("/")[0], *test.link}:
            return  # ordered by a controller before this one: it is ordered again
        test.told[host] = said
        if test.card:
            del self._tests[test.number]
            self._card_tested(test, said)
        elif len(test.told) == 2 or (said.problem and not said.figures):
            del self._tests[test.number]
            self._link_tested(test)

    def tick(self) -> None:
        """Called with every tick; looks once a second."""
        state, now = self._state, self._state.clock()
        if now < self._look_at or state.over:
            return
        self._look_at = now + TICK_SECONDS
        for test in [test for test in self._tests.values() if now > test.deadline]:
            del self._tests[test.number]
            if test.card:
                self._card_tested(test, p.Tested(0, test.number, 0, 0, "its agent did not say how it ended"))
            else:
                self._link_tested(test)
        busy = {test.card for test in self._tests.values()}
        for card in sorted(state.roster.suspected - busy):  # the controller was started again meanwhile
            host, slot = card.split("/")
            if host not in state.roster.lost and state.stage == "run":
                self._order(host, int(slot), "", after=ANY)
        if state.stage != "run":
            return
        while self._links:
            one, other, fault = self._links.popleft()
            if {one, other} <= set(state.roster.live()):
                self._order_link(one, other, fault)
        if state.watch.selftest == "idle":
            self._test_spares(busy, now)

    # -- within ---------------------------------------------------------------------------------------------------------

    def _test_spares(self, busy: set[str], now: float) -> None:
        """Spares that have nothing to do, one of a host at a time."""
        state = self._state
        hosts = {card.split("/")[0] for card in busy if card}
        for spare in state.roster.candidates():
            if len(hosts) >= AT_ONCE:
                return
            if (
                spare.host in hosts
                or now < self._idle_at.get(spare.name, 0.0)
                or state.roster.holds_rank(spare.host, spare.pid)
            ):
                continue
            hosts.add(spare.host)
            self._idle_at[spare.name] = now + 60.0 * state.watch.selftest_minutes
            self._order(spare.host, spare.slot, "", times=1)

    def _order(self, host: str, slot: int, fault: str, *, after: int = 0, times: int = TIMES, hand: str = "") -> int:
        self._number += 1
        deadline = self._state.clock() + CARD_SECONDS
        self._tests[self._number] = _Test(self._number, deadline, fault, card=f"{host}/{slot}", hand=hand)
        self._state.send(host, p.SelfTest(self._number, slot, times, after))
        return self._number

    def _order_link(self, one: str, other: str, fault: str, hand: str = "") -> int:
        self._number += 1
        token = os.urandom(32)
        deadline = self._state.clock() + LINK_SECONDS
        self._tests[self._number] = _Test(self._number, deadline, fault, link=(one, other), token=token, hand=hand)
        self._state.send(one, p.LinkTest(self._number, token, self._state.spec.host(one).address))
        return self._number

    def _card_tested(self, test: _Test, said: p.Tested) -> None:
        state, card = self._state, test.card
        failed = said.times > said.passed
        if failed:
            text = f"failed: passed {said.passed} of {said.times}; {said.problem}"
        elif said.times:
            text = f"passed {said.passed} of {said.times}" + (f"; then {said.problem}" if said.problem else "")
        else:
            text = f"could not be run: {said.problem}"
        self._evidence(test.fault, Fact(f"self-test of {card}", text, None, "", "n9 train vet --quick on that card"))
        kind = "selftest.failed" if failed else "selftest.done"
        state.tell(kind, test=test.number, card=card, fault=test.fault, text=text, figures=said.figures)
        if failed:
            state.keep_out(card, f"its self-test failed: {said.problem}")
        if card in state.roster.suspected:
            state.roster.suspected.discard(card)
            state.journal.write("cleared", card=card, outcome=text)

    def _link_tested(self, test: _Test) -> None:
        state, (one, other) = self._state, test.link
        problems = [said.problem for said in test.told.values() if said.problem]
        figures = next((said.figures for host, said in test.told.items() if host == other and said.figures), {})
        if problems or not figures:
            text = f"failed: {problems[0] if problems else 'an end did not answer'}"
        else:
            speed = min(figures.get("out_mb_s", 0.0), figures.get("in_mb_s", 0.0))
            usual = sorted(self._speeds)[len(self._speeds) // 2] if len(self._speeds) >= FEWEST_LINKS else 0.0
            self._speeds.append(speed)
            slow = usual and speed < SLOW_LINK * usual
            text = (
                f"{'slow' if slow else 'good'}: {figures.get('out_mb_s', 0):.0f} and {figures.get('in_mb_s', 0):.0f} MB/s, "
                f"{figures.get('round_trip_ms', 0):.2f} ms there and back, {figures.get('damaged', 0):.0f} of "
                f"{figures.get('pieces', 0):.0f} pieces damaged" + (f"; the usual is {usual:.0f} MB/s" if slow else "")
            )
        fact = Fact(f"link test between {one} and {other}", text, None, "", "TCP between their agents")
        self._evidence(test.fault, fact)
        bad = not text.startswith("good")
        kind = "link.failed" if bad else "link.done"
        state.tell(kind, test=test.number, hosts=f"{one}, {other}", fault=test.fault, text=text, figures=figures)

    def _evidence(self, id: str, fact: Fact) -> None:
        fault = next((fault for fault in self._state.book.faults if fault.id == id), None)
        if fault is not None:
            self._state.book.add(fault, fact)
