from __future__ import annotations

import msgspec

from ninthsky.guard.agent.store import dispensable
from ninthsky.guard.controller.corruption import Corruption
from ninthsky.guard.controller.ladder import Remedy
from ninthsky.guard.judges import Verdict
from ninthsky.guard.judges.corrupt import Sign, judge_corrupt
from ninthsky.guard.judges.nonfinite import Vote, judge_nonfinite
from ninthsky.guard.probe.messages import Corrupt, decode_to_agent, frame
from ninthsky.guard.spec import Watch

CARDS = ["a/0", "a/1", "b/0", "b/1"]


def _climb(verdict: Verdict) -> Remedy:
    return Remedy("regroup", "", verdict.ranks) if verdict.ranks else Remedy("rebuild", "")


def test_the_message_survives_the_wire() -> None:
    told = Corrupt(3, 40, 1, "replay", [2], 19, False, [0, 2], ["x"])
    assert decode_to_agent(frame(told)[4:]) == told


def test_state_that_changed_is_taken_again_and_a_card_where_it_happens_twice_goes() -> None:
    corruption, told = Corruption(Watch(card_failures=2)), Corrupt(1, 12, 0, "rest", [2], 11, True)
    verdict, remedy = corruption.judge(told, CARDS, _climb)
    assert verdict.ranks == (2,) and remedy.rung == "restore"
    _, remedy = corruption.judge(msgspec.structs.replace(told, step=30, trusted=29), CARDS, _climb)
    assert (remedy.rung, remedy.evict, remedy.verified) == ("regroup", (2,), 29)


def test_where_the_newest_replica_is_older_all_go_back_to_it() -> None:
    told = Corrupt(1, 12, 0, "rest", [2], 9, False)
    _, remedy = Corruption(Watch()).judge(told, CARDS, _climb)
    assert (remedy.rung, remedy.evict, remedy.verified) == ("rebuild", (), 9)


def test_a_card_that_computes_wrongly_goes_and_so_does_what_was_done_since_it_was_right() -> None:
    verdict, remedy = Corruption(Watch()).judge(Corrupt(1, 29, 0, "replay", [2], 19, False, [0, 2]), CARDS, _climb)
    assert verdict.ranks == (2,) and "rank 0: the majority agrees with it" in verdict.ruled_out
    assert (remedy.rung, remedy.evict, remedy.verified) == ("regroup", (2,), 19)


def test_of_two_nobody_is_blamed_until_it_happens_again() -> None:
    corruption, told = Corruption(Watch()), Corrupt(1, 29, 0, "replay", [], 19, False, [0, 2])
    verdict, remedy = corruption.judge(told, CARDS, _climb)
    assert verdict.ranks == () and (remedy.rung, remedy.verified) == ("rebuild", 19)
    verdict, remedy = corruption.judge(msgspec.structs.replace(told, step=39, trusted=29), CARDS, _climb)
    assert verdict.ranks == (0, 2) and remedy.evict == (0, 2)


def test_nothing_known_to_be_right_means_the_first_state() -> None:
    verdict = judge_corrupt(Sign("replay", 9, (1,), (1, 3), -1, ()))
    assert any("the first" in str(fact) for fact in verdict.facts)


def test_gradients_beyond_their_range_are_corrupt_until_they_follow_the_data() -> None:
    votes = [Vote(0, (1,))]
    finding, verdict = judge_nonfinite(5, votes, 4, "range")
    assert (finding, verdict.cause, verdict.ranks) == ("once", "corrupt", (1,))
    votes += [Vote(1, (1,)), Vote(2, (0,), rotated=True)]
    finding, verdict = judge_nonfinite(5, votes, 4, "range")
    assert finding == "data" and verdict.ranks == ()


def test_the_state_to_go_back_to_is_kept_until_all_hold_a_later_one() -> None:
    def pinned(step: int) -> bool:
        return (step + 1) % 10 == 0

    assert dispensable([9, 10, 11], pinned) == []
    assert dispensable([9, 10, 11, 12], pinned) == [10]
    assert dispensable([9, 18, 19], pinned) == [], "others may not have written 19 yet"
    assert dispensable([9, 18, 19, 20], pinned) == [9, 18]
    assert dispensable([1, 2, 3], lambda _: False) == [1]
