"""Cards in doubt: tested before they may hold a rank again, kept out where they fail, and who is not in doubt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ninthsky.guard import protocol as p
from ninthsky.guard.faults import read_faults
from ninthsky.guard.judges import Verdict
from ninthsky.guard.probe import messages as m
from ninthsky.guard.spec import Watch
from tests.guard.controller.test_conductor import Cluster


def bad_card(folder: Path, **watch: Any) -> Cluster:
    """Rank 1's card gave bad gradients with other data too, and was replaced."""
    cluster = Cluster(folder, Watch(**{"action": "act", **watch}))
    cluster.begin()
    for attempt in range(4):
        for rank in range(4):
            proc = cluster.state.roster.places[rank]
            cluster.say(proc.host, proc.slot, m.Bad(cluster.state.generation, 5, attempt, [1]))
        cluster.drain()
        if cluster.state.generation > 1:
            return cluster
    raise AssertionError(cluster.kinds())


def orders(cluster: Cluster, kind: type = p.SelfTest) -> list[Any]:
    return [(host, command) for host, command in cluster.sent if isinstance(command, kind)]


def answer(cluster: Cluster, host: str, test: int, passed: int, times: int, problem: str = "") -> None:
    cluster.tell(host, lambda n: p.Tested(n, test, passed, times, problem))
    cluster.drain()


def test_a_bad_card_is_tested_and_may_come_back(tmp_path: Path) -> None:
    cluster = bad_card(tmp_path)
    ((host, order),) = orders(cluster)
    assert (host, order.slot, order.times) == ("a", 1, 3) and order.after > 0
    assert cluster.state.roster.suspected == {"a/1"}
    assert all(card.name != "a/1" for card in cluster.state.roster.candidates())
    answer(cluster, "a", order.test, 3, 3)
    assert not cluster.state.roster.suspected and "a/1" not in cluster.state.roster.kept_out
    (fault,) = read_faults(tmp_path / "faults")
    assert ("self-test of a/1", "passed 3 of 3") in [(fact.name, fact.value) for fact in fault.evidence.facts]
    assert "selftest.done" in cluster.kinds()


def test_a_card_that_fails_its_test_is_kept_out(tmp_path: Path) -> None:
    cluster = bad_card(tmp_path)
    ((_, order),) = orders(cluster)
    answer(cluster, "a", order.test, 1, 2, "memory: word 3")
    assert cluster.state.roster.kept_out == {"a/1"} and not cluster.state.roster.suspected
    assert ("a", 1) in [(host, command.slot) for host, command in orders(cluster, p.KeepOut)]
    assert "memory: word 3" in read_faults(tmp_path / "faults")[0].evidence.facts[-1].value  # type: ignore[operator]


def test_a_test_that_cannot_be_run_decides_nothing(tmp_path: Path) -> None:
    cluster = bad_card(tmp_path)
    ((_, order),) = orders(cluster)
    answer(cluster, "b", order.test, 0, 3, "not its agent")
    assert cluster.state.roster.suspected == {"a/1"}, "another host's word does not count"
    answer(cluster, "a", order.test, 0, 0, "no torch")
    assert not cluster.state.roster.suspected and not cluster.state.roster.kept_out


def test_doubt_outlives_the_controller(tmp_path: Path) -> None:
    cluster = bad_card(tmp_path)
    cluster.run(0.5)
    cluster.sent.clear()
    cluster.c = cluster.start()
    for host in cluster.slots:
        cluster.queue.append((host, cluster.register(host)))
    cluster.run(3.0)
    assert cluster.state.roster.suspected == {"a/1"}
    ((host, order),) = orders(cluster)
    assert (host, order.slot) == ("a", 1)
    answer(cluster, "a", order.test, 3, 3)
    assert not cluster.state.roster.suspected


@pytest.mark.parametrize("watch", [{"selftest": "off"}, {"card_failures": 1}])
def test_no_test_where_none_is_wanted_or_needed(tmp_path: Path, watch: dict[str, Any]) -> None:
    assert not orders(bad_card(tmp_path, **watch))


def test_who_was_only_killed_is_not_in_doubt_unless_its_host_told_of_it(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, Watch(action="act"))
    cluster.begin()
    window = cluster.state.fleet.window(cluster.now)
    cluster.c._remedies.fault(Verdict("exit", (0,), "ended", ()), window, -9)
    assert not orders(cluster)
    cluster.c._remedies.fault(Verdict("exit", (2,), "ended", (), playbook="gpu_ecc"), window, -9)
    assert [host for host, _ in orders(cluster)] == ["b"]


def test_idle_spares_are_tested_now_and_then(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, Watch(action="act", selftest="idle", selftest_minutes=0.1))
    cluster.begin()
    cluster.run(1.5)
    found = orders(cluster)
    assert sorted((host, order.slot) for host, order in found) == [("a", 2), ("b", 2)]
    assert all(not order.after for _, order in found), "beside the spare's process, which stays ready"
    for host, order in found:
        answer(cluster, host, order.test, 1, 1)
    cluster.run(4.0)
    assert len(orders(cluster)) == 2
    cluster.run(4.0)
    assert len(orders(cluster)) == 4
    answer(cluster, "a", orders(cluster)[-2][1].test, 0, 1, "a product is wrong")
    assert cluster.state.roster.kept_out == {"a/2"}


def test_after_a_broken_collective_the_hosts_links_are_tested(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, Watch(action="act"))
    cluster.begin()
    for rank in (3, 1):
        proc = cluster.state.roster.places[rank]
        cluster.say(proc.host, proc.slot, m.Broken(1, 4, "connection reset"))
    cluster.drain()
    cluster.run(4.0)
    assert cluster.state.stage == "run" and cluster.state.generation == 2
    ((host, order),) = orders(cluster, p.LinkTest)
    assert (host, order.port) == ("b", 0), "the host of the first rank that it broke on"
    cluster.tell("b", lambda n: p.LinkServing(n, order.test, 7777))
    cluster.drain()
    (_, second) = orders(cluster, p.LinkTest)[-1]
    assert (second.port, second.token) == (7777, order.token) and repr(order.token) not in repr(second)
    figures = {"out_mb_s": 800.0, "in_mb_s": 700.0, "round_trip_ms": 0.2, "damaged": 2.0, "pieces": 64.0}
    for name in "ab":
        cluster.tell(name, lambda n: p.Tested(n, order.test, 0, 1, "2 of 64 pieces damaged", figures))
    cluster.drain()
    assert "link.failed" in cluster.kinds()
    fact = read_faults(tmp_path / "faults")[0].evidence.facts[-1]
    assert fact.name == "link test between b and a" and "2 of 64" in str(fact.value)


def test_by_hand(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, Watch(action="act", selftest="off"))
    cluster.begin()
    cluster.state.suspects.ordered("me", "b", 1.0)
    assert [(host, order.slot, order.after) for host, order in orders(cluster)] == [("b", 0, 0), ("b", 1, 0), ("b", 2, 0)]
    cluster.state.suspects.ordered("me", "a:b", 2.0)
    cluster.state.suspects.ordered("me", "a:nowhere", 3.0)
    assert len(orders(cluster, p.LinkTest)) == 1
    told = [event for event in cluster.events if event["kind"] == "selftest.ordered"]
    assert [(event["asked"], event["tests"]) for event in told] == [(1.0, [1, 2, 3]), (2.0, [4]), (3.0, [])]
