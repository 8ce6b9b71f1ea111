from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ninthsky.guard.controller.ladder import History, Means, climb, climb_nonfinite
from ninthsky.guard.controller.placement import Card, choose_resume_step, place, second_copies, sources
from ninthsky.guard.controller.worlds import Worlds
from ninthsky.guard.judges import Verdict
from ninthsky.guard.protocol import ShardInfo
from ninthsky.guard.spec import Watch

HOMES = ["a", "a", "b", "b"]
ALL = [Card(host, slot, 10 * (host == "b") + slot) for host in "ab" for slot in range(3)]


def test_first_generation_fills_hosts_in_order() -> None:
    assert [(card.host, card.slot) for card in place([], HOMES, ALL, {})] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]


def test_a_spare_of_the_same_host_comes_first_then_of_another() -> None:
    before = place([], HOMES, ALL, {})
    without = [card for card in ALL if card != before[2]]
    assert place(before, HOMES, without, {})[2] == Card("b", 2, 12)
    without = [card for card in without if card.host != "b" or card.slot == 1]
    assert place(before, HOMES, without, {})[2] == Card("a", 2, 2)
    with pytest.raises(ValueError):
        place(before, HOMES, without[:3], {})


def test_a_card_that_failed_comes_last() -> None:
    before = place([], HOMES, ALL, {})
    again = [card for card in ALL if card != before[2]] + [Card("b", 0, 99)]  # its slot has a new process
    assert place(before, HOMES, again, {"b/0": 1})[2].name == "b/2"


@given(st.sets(st.integers(0, 5), max_size=2))
def test_who_lives_stays_and_nobody_sits_twice(dead: set[int]) -> None:
    before = place([], HOMES, ALL, {})
    alive = [card for number, card in enumerate(ALL) if number not in dead]
    after = place(before, HOMES, alive, {})
    assert len(set(after)) == 4 and set(after) <= set(alive)
    assert all(new == old for old, new in zip(before, after, strict=True) if old in alive)


def shards(*pairs: tuple[int, int]) -> list[ShardInfo]:
    return [ShardInfo(rank, step, 1, f"{rank}-{step}") for rank, step in pairs]


def test_the_newest_step_that_is_whole_across_hosts() -> None:
    inventories = {"a": shards((0, 5), (0, 6), (1, 5), (1, 6)), "b": shards((2, 4), (2, 5), (3, 5), (3, 6))}
    assert choose_resume_step(inventories, Worlds([(-1, 4)])) == 5
    assert choose_resume_step({"a": shards((0, 5))}, Worlds([(-1, 2)])) == -1
    assert sources(inventories, 5, ["a", "a", "b", "a"])[3] == ("b", "3-5")
    both = {"a": shards((0, 5)), "b": shards((0, 5))}
    assert sources(both, 5, ["b"])[0] == ("b", "0-5"), "a rank's own host is the nearest"
    assert sources(both, -1, ["b"]) == {}


def test_what_one_host_alone_holds_is_copied_to_the_next_one() -> None:
    """Host b is lost of a, b, c, each of which held its own rank and the one before."""
    left = {"a": shards((0, 5), (2, 5)), "c": shards((1, 5), (2, 4), (2, 5))}
    brought = sources(left, 5, ["a", "b", "c"])
    assert second_copies(left, 5, brought, [], ["a", "c"]) == {"c": {0: ("a", "0-5")}, "a": {1: ("c", "1-5")}}
    assert second_copies(left, 5, brought, ["a", "a", "c"], ["a", "c"]) == {"c": {0: ("a", "0-5")}}, "a spare takes one over"
    other = {"a": [*shards((0, 5)), ShardInfo(1, 5, 1, "damaged")], "c": shards((1, 5))}
    assert second_copies(other, 5, sources(other, 5, ["a", "c"]), [], ["a", "c"])["a"] == {1: ("c", "1-5")}
    assert second_copies({"a": shards((0, 5))}, 5, {0: ("a", "0-5")}, [], ["a"]) == {}, "there is no second host"


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from("abcd")), min_size=1), st.permutations("abcd"))
def test_afterwards_no_one_host_can_take_a_shard_with_it(held: list[tuple[int, str]], ring: list[str]) -> None:
    inventories = {host: shards(*((rank, 3) for rank, where in held if where == host)) for host in ring}
    brought = sources(inventories, 3, [])
    holders = {(rank, host) for rank, host in held}
    for host, fetched in second_copies(inventories, 3, brought, [], list(ring)).items():
        for rank, (source, _) in fetched.items():
            assert (rank, source) in holders
            holders.add((rank, host))
    assert all(sum(rank == one for one, _ in holders) >= 2 for rank in brought)


WATCH = Watch(action="act", max_evictions_per_hour=2)
EXIT = Verdict("exit", (1,), "", ())
FULL, BARE = Means(4, 4, 1), Means(4, 4, 0)


def test_the_ladder_stops_at_its_limits() -> None:
    assert climb(EXIT, History(), WATCH, 5, 0.0, -9, FULL).rung == "regroup"
    assert climb(EXIT, History(evictions=[9_000.0, 9_100.0]), WATCH, 5, 9_200.0, -9, FULL).rung == "stop"
    assert climb(EXIT, History(evictions=[1_000.0, 1_100.0]), WATCH, 5, 9_200.0, -9, FULL).rung == "regroup", "an hour ago"
    assert climb(Verdict("unknown", (), "", ()), History(), WATCH, 5, 0.0, 0, FULL).rung == "rebuild"
    assert climb(Verdict("unknown", (), "", ()), History(rebuilds=3), WATCH, 5, 0.0, 0, FULL).rung == "stop"
    assert climb(Verdict("mismatch", (), "", ()), History(), WATCH, 5, 0.0, 0, FULL).rung == "stop"


def test_an_error_of_the_program_gets_one_more_card_not_two() -> None:
    history = History()
    assert climb(EXIT, history, WATCH, 5, 0.0, 1, FULL).rung == "regroup"
    history.program_errors[5] += 1
    assert climb(EXIT, history, WATCH, 5, 0.0, 1, FULL).rung == "stop"
    assert climb(EXIT, history, WATCH, 6, 0.0, 1, FULL).rung == "regroup", "another step is another story"
    assert climb(EXIT, history, WATCH, 5, 0.0, 3, FULL).rung == "regroup", "a fenced rank is no error of the program"


def test_a_slow_card_is_borne_while_no_spare_is_ready() -> None:
    slow = Verdict("slow", (1,), "", ())
    assert climb(slow, History(), WATCH, 5, 0.0, 0, BARE).rung == "bear"
    assert climb(slow, History(), WATCH, 5, 0.0, 0, FULL).rung == "regroup"


def test_bad_gradients_climb_rung_by_rung() -> None:
    assert climb_nonfinite("once", 1, 2, WATCH).rung == "redo"
    assert climb_nonfinite("again", 2, 2, WATCH).rung == "rotate"
    assert climb_nonfinite("card", 3, 2, WATCH).evict == (2,)
    assert climb_nonfinite("data", 3, 2, WATCH).rung == "skip"
    assert "decides on the step" in climb_nonfinite("data", 3, 2, WATCH, "outlier").text
    assert climb_nonfinite("everywhere", 1, 2, WATCH).rung == "redo"
    assert climb_nonfinite("everywhere", 2, 2, WATCH).rung == "stop"
    assert climb_nonfinite("gone", 9, 2, WATCH).rung == "stop"
