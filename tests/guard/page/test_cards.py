from __future__ import annotations

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ninthsky.guard.page.cards import Cards, changes, whole
from ninthsky.guard.picture import Card


def laid(runs: list[int], into: Cards) -> None:
    """What page.js does with a difference."""
    place = 0
    for gap, length, state in zip(runs[::3], runs[1::3], runs[2::3], strict=True):
        place += gap
        into[place : place + length] = state
        place += length


maps = st.lists(st.integers(0, 8), min_size=1, max_size=60)


@given(maps, st.data(), st.integers(1, 5))
def test_a_reader_gets_the_whole_map_however_small_the_budget(before: list[int], data: st.DataObject, runs: int) -> None:
    after = np.array(data.draw(st.lists(st.integers(0, 8), min_size=len(before), max_size=len(before))), np.uint8)
    shown = np.array(before, np.uint8)
    snapshot = whole(shown)
    reader = np.repeat(np.array(snapshot[1::2], np.uint8), snapshot[::2])
    assert (reader == shown).all()
    rounds = 0
    while told := changes(shown, after, runs):
        assert len(told) <= 3 * runs
        laid(told, reader)
        assert (reader == shown).all(), "the server must know what the reader sees"
        rounds += 1
    assert (reader == after).all() and rounds <= len(before)


def test_the_accused_card_goes_before_a_thousand_others() -> None:
    shown = np.zeros(4000, np.uint8)
    after = np.tile(np.array([Card.WORKING, Card.SPARE], np.uint8), 2000)
    after[3777] = Card.ACCUSED
    changes(shown, after, 10)
    assert shown[3777] == Card.ACCUSED


def test_a_fleet_in_one_state_is_a_few_bytes() -> None:
    shown = np.full(20_736, Card.WORKING, np.uint8)
    assert len(json.dumps(changes(shown, np.full(20_736, Card.FORMING, np.uint8), 100))) < 20
