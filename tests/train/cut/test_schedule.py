from __future__ import annotations

import itertools
from collections import Counter

import pytest

from ninthsky.errors import UserError
from ninthsky.train.cut.schedule import Message, Name, Schedule, Work

CASES: list[tuple[Name, int, int, int]] = [
    *(("1f1b", p, 1, m) for p in (1, 2, 4, 8) for m in (1, 3, 4, 16)),
    *(("interleaved", p, v, m) for p in (2, 4) for v in (1, 2, 3) for m in (4, 8, 16)),
    *(("zero-bubble", p, 1, m) for p in (1, 2, 4, 8) for m in (1, 3, 8, 16)),
    *(("zero-bubble", p, v, m) for p in (2, 4) for v in (2, 3) for m in (4, 8)),
]


@pytest.mark.parametrize(("name", "ranks", "parts", "micros"), CASES)
def test_every_piece_of_work_is_done_once_and_after_what_it_needs(name: Name, ranks: int, parts: int, micros: int) -> None:
    schedule = Schedule.of(name, ranks, parts, micros)
    kinds = ("F", "B", "W") if name == "zero-bubble" else ("F", "B")
    done = {(one.kind, one.part, one.micro): one for work in schedule.work for one in work}
    assert set(done) == set(itertools.product(kinds, range(ranks * parts), range(micros)))
    assert sum(map(len, schedule.work)) == len(done)
    for rank, work in enumerate(schedule.work):
        assert all(schedule.rank_of(one.part) == rank for one in work)
        assert all(one.end <= other.begin for one, other in itertools.pairwise(work))
        assert Counter((one.kind, one.part) for one in work).most_common()[-1][1] == micros
    assert all(done[needed].end <= one.begin for one in done.values() for needed in _needs(schedule, one))  # type: ignore[index]


@pytest.mark.parametrize(("name", "ranks", "parts", "micros"), CASES)
def test_both_sides_of_a_pair_list_the_same_messages_in_the_same_order(name: Name, ranks: int, parts: int, micros: int) -> None:
    schedule = Schedule.of(name, ranks, parts, micros)
    programs = [schedule.program(rank) for rank in range(ranks)]
    assert [tuple(e for e in program if isinstance(e, Work)) for program in programs] == list(schedule.work)
    for one, other in itertools.combinations(range(ranks), 2):
        sides = [
            [event for event in programs[rank] if isinstance(event, Message) and {event.source, event.target} == {one, other}]
            for rank in (one, other)
        ]
        assert sides[0] == sides[1]
    _run(schedule)


def _run(schedule: Schedule) -> None:
    """On channels where each side waits until the other comes to the same message: nobody gets stuck, or works too early."""
    programs, at = [schedule.program(rank) for rank in range(schedule.ranks)], [0] * schedule.ranks
    there = [set[tuple[str, int, int]]() for _ in programs]  # what each rank has computed or received
    moving = True
    while moving:
        moving = False
        for rank, program in enumerate(programs):
            while at[rank] < len(program):
                event = program[at[rank]]
                if isinstance(event, Message):
                    other = event.source + event.target - rank
                    if at[other] == len(programs[other]) or programs[other][at[other]] != event:
                        break
                    assert (event.kind, event.part, event.micro) in there[event.source]
                    there[event.target].add((event.kind, event.part, event.micro))
                    at[other] += 1
                else:
                    assert set(_needs(schedule, event)) <= there[rank]
                    there[rank].add((event.kind, event.part, event.micro))
                at[rank] += 1
                moving = True
    assert at == [len(program) for program in programs]


def _needs(schedule: Schedule, work: Work) -> list[tuple[str, int, int]]:
    if work.kind == "F":
        return [("F", work.part - 1, work.micro)] if work.part else []
    own = [("B" if work.kind == "W" else "F", work.part, work.micro)]
    last = work.part == schedule.ranks * schedule.parts - 1
    return own if work.kind == "W" or last else [*own, ("B", work.part + 1, work.micro)]


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_idle_shares_are_the_papers(ranks: int, rounds: int) -> None:
    micros = ranks * rounds
    assert Schedule.of("1f1b", ranks, 1, micros).idle == pytest.approx((ranks - 1) / (micros + ranks - 1))
    for parts in (1, 2, 4):
        interleaved, zero = (Schedule.of(name, ranks, parts, micros) for name in ("interleaved", "zero-bubble"))
        assert interleaved.idle == pytest.approx((ranks - 1) / (parts * micros + ranks - 1))
        assert zero.idle == pytest.approx((ranks - 1) / (3 * parts * micros + ranks - 1))


def test_what_is_held_does_not_grow_with_micro_batches() -> None:
    for micros in (8, 16, 64):
        assert [Schedule.of("1f1b", 4, 1, micros).held(rank) for rank in range(4)] == [4, 3, 2, 1]
        assert {Schedule.of("zero-bubble", 4, 1, micros).held(rank) for rank in range(4)} == {4}
        assert Schedule.of("interleaved", 4, 2, micros).held(0) == 11


@pytest.mark.parametrize(("name", "parts", "micros"), [("1f1b", 2, 4), ("interleaved", 2, 3), ("zero-bubble", 2, 1)])
def test_numbers_without_a_schedule_are_refused(name: Name, parts: int, micros: int) -> None:
    with pytest.raises(UserError) as told:
        Schedule.of(name, 2, parts, micros)
    assert told.value.code == "N9-CFG-013"
