"""Who may act: never two at once, whatever the network does; and somebody, as soon as more than half can be reached."""

from __future__ import annotations

import random
from collections.abc import Callable

from ninthsky.guard.agent.allegiance import Allegiance
from ninthsky.guard.controller.lease import SECONDS, Lease
from ninthsky.guard.protocol import Claim

NAMES = ("controller", "standby")


class World:
    """Agents and two controllers on a made clock. `reaches(name, host)` says what the network lets through."""

    def __init__(self, hosts: int, seed: int = 0) -> None:
        self.now = 100.0
        self.random = random.Random(seed)
        self.hosts = [f"host-{n}" for n in range(hosts)]
        self.agents = {host: Allegiance(self.hosts, True, clock=self.clock) for host in self.hosts}
        self.leases = {name: self.lease(name) for name in NAMES}
        self.frozen: set[str] = set()
        self.reaches: Callable[[str, str], bool] = lambda name, host: True
        self.delay = 0.0
        self.flying: list[tuple[float, Callable[[], None]]] = []

    def clock(self) -> float:
        return self.now

    def lease(self, name: str, *, alone: bool = False) -> Lease:
        return Lease(name, self.hosts, waits=name == "standby", alone=alone, clock=self.clock)

    def leaders(self) -> list[str]:
        """A frozen one acts on nothing; what it thinks when it wakes is asked then."""
        return [name for name, lease in self.leases.items() if name not in self.frozen and lease.holds()]

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.1)):
            self.now += 0.1
            for name, lease in self.leases.items():
                if name in self.frozen:
                    continue
                claim = lease.claim()
                if claim is not None:
                    for host in lease.asked():
                        self.fly(lambda name=name, host=host, claim=claim: self.arrive(name, host, claim))  # type: ignore[misc]
            if round(self.now * 10) % 5 == 0:
                for host in self.hosts:
                    for name in NAMES:
                        self.tell(name, host, 0)
            due = [work for at, work in self.flying if at <= self.now]
            self.flying = [(at, work) for at, work in self.flying if at > self.now]
            for work in due:
                work()
            assert len(self.leaders()) < 2, f"two lead at {self.now}"

    def fly(self, work: Callable[[], None]) -> None:
        self.flying.append((self.now + self.random.uniform(0.0, self.delay), work))

    def arrive(self, name: str, host: str, claim: Claim) -> None:
        if self.reaches(name, host):
            self.agents[host].claimed(name, claim)
            self.tell(name, host, claim.number)

    def tell(self, name: str, host: str, number: int) -> None:
        standing, lease = self.agents[host].standing(number), self.leases[name]

        def hear() -> None:
            if self.reaches(name, host) and name not in self.frozen and self.leases[name] is lease:
                lease.heard(host, standing)

        self.fly(hear)


def test_the_first_one_leads_and_the_standby_takes_over_when_it_dies() -> None:
    world = World(2)
    world.run(3)
    assert world.leaders() == ["controller"] and world.leases["controller"].term == 1
    world.frozen.add("controller")
    world.run(2 * SECONDS)
    assert world.leaders() == ["standby"] and world.leases["standby"].term == 2
    assert world.agents["host-0"].obeys("standby", 2) and not world.agents["host-0"].obeys("controller", 1)
    world.frozen.clear()
    assert not world.leases["controller"].holds(), "it wakes with a lease that has lapsed"
    world.run(1)
    assert world.leases["controller"].superseded_by == "standby" and world.leaders() == ["standby"]


def test_half_keeps_a_lease_but_does_not_win_one() -> None:
    """Two hosts, one on each side of a cut: the holder goes on, the standby with the other half does not take over."""
    world = World(2)
    world.run(3)
    world.reaches = lambda name, host: (name == "controller") == (host == "host-0")
    world.run(20)
    assert world.leaders() == ["controller"]
    world.frozen.add("controller")
    world.run(20)
    assert world.leaders() == [], "one of two is not enough"
    world.leases["standby"] = world.lease("standby", alone=True)
    world.run(2 * SECONDS)
    assert world.leaders() == ["standby"], "a person vouched for it"


def test_a_holder_that_reaches_less_than_half_stops_by_itself() -> None:
    world = World(3)
    world.run(3)
    world.reaches = lambda name, host: (name == "controller") == (host == "host-0")
    world.run(2 * SECONDS)
    assert world.leaders() == ["standby"]


def test_voters_that_are_lost_are_voted_out_and_the_rest_decides() -> None:
    world = World(4)
    world.run(3)
    world.reaches = lambda name, host: host in {"host-0", "host-1"}
    world.run(3)
    world.leases["controller"].declare(2, ["host-0", "host-1"])
    world.run(1)
    assert world.leases["controller"].voters == ("host-0", "host-1")
    world.reaches = lambda name, host: name == "standby" or host in {"host-0"}
    world.run(10)
    assert world.leaders() == ["controller"], "host-1 tells the standby that the two others do not count any more"
    world.frozen.add("controller")
    world.run(2 * SECONDS)
    assert world.leaders() == ["standby"]


def test_one_that_was_killed_and_started_again_leads_again() -> None:
    world = World(2)
    world.run(3)
    world.leases["controller"] = world.lease("controller")
    world.run(1)
    assert world.leaders() == ["controller"] and world.leases["controller"].term == 2


def test_a_claim_that_no_one_needs_disturbs_nobody() -> None:
    world = World(5)
    world.run(60)
    assert world.leases["controller"].term == 1 and world.leases["standby"].term == 0


def test_never_two_at_once() -> None:
    """Cuts, delays of seconds, frozen and restarted controllers, shrinking sets of voters, all by chance."""
    led: set[str] = set()
    for seed in range(120):
        random.seed(seed)  # for the pauses between claims
        world = World(2 + seed % 5, seed)
        chance, world.delay = world.random, world.random.choice([0.0, 0.3, 3.0])
        world.run(2)
        declared = 1
        for _ in range(25):
            cut = {(name, host) for name in NAMES for host in world.hosts if chance.random() < 0.35}
            world.reaches = lambda name, host, cut=cut: (name, host) not in cut  # type: ignore[misc]
            world.frozen = {name for name in NAMES if chance.random() < 0.2}
            for name in NAMES:
                if world.leases[name].superseded_by or chance.random() < 0.05:
                    world.leases[name] = world.lease(name)  # ended, and was started again
            for name in world.leaders():
                reached = [host for host in world.leases[name].voters if world.reaches(name, host)]
                if chance.random() < 0.3 and 2 * len(reached) >= len(world.leases[name].voters):
                    declared += 1
                    world.leases[name].declare(declared, reached)
            world.run(chance.uniform(0.2, 4.0))
            led |= set(world.leaders())
    assert led == set(NAMES), "nothing was shown if one of them never led"
