from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ninthsky.errors import UserError
from ninthsky.signal.record import Axis, Context, Labelled, Signal, Value
from ninthsky.signal.split import By, split


def rows(recordings: list[int], subjects: list[int | None] | None = None) -> Labelled:
    subjects = subjects or [None] * len(recordings)
    signals = tuple(
        Signal(
            np.zeros(1),
            (Axis("time", "s"),),
            Value("real", "1"),
            Context(f"r{recording}", "real", None if s is None else f"s{s}"),
        )
        for recording, s in zip(recordings, subjects, strict=True)
    )
    return Labelled(signals, np.array([recording % 3 for recording in recordings]), ("a", "b", "c"))


@settings(deadline=None)  # no test asserts a time
@given(st.lists(st.integers(0, 20), min_size=2, max_size=80), st.integers(0, 5))
def test_no_recording_is_on_both_sides_and_no_row_is_lost(recordings: list[int], seed: int) -> None:
    train, test = split(rows(recordings), "recording", 0.3, seed)
    assert not {recordings[row] for row in train} & {recordings[row] for row in test}
    assert sorted([*train, *test]) == list(range(len(recordings)))
    assert len(test) > 0


def test_each_class_is_tested_by_its_share() -> None:
    recordings = list(range(120))
    _, test = split(rows(recordings), "recording", 0.25, 7)
    assert np.bincount(rows(recordings).labels[test]).tolist() == [10, 10, 10]


def test_splitting_windows_of_one_recording_is_refused() -> None:
    with pytest.raises(UserError, match="2 rows share the recording r1"):
        split(rows([0, 1, 1, 2]), "row", 0.3, 7)
    with pytest.raises(UserError, match="share the subject s0"):
        split(rows([0, 1, 2], [0, 0, 1]), "row", 0.3, 7)
    train, test = split(rows(list(range(12))), "row", 0.3, 7)
    assert len(train) + len(test) == 12


@pytest.mark.parametrize("by", ["subject", "day"])
def test_a_missing_name_is_an_error(by: By) -> None:
    with pytest.raises(UserError, match=f"does not say its {by}"):
        split(rows([0, 1]), by, 0.5, 7)


def test_by_subject() -> None:
    subjects: list[int | None] = [0, 0, 1, 1, 2, 2]
    train, test = split(rows([0, 3, 6, 9, 12, 15], subjects), "subject", 0.34, 7)
    assert not {subjects[row] for row in train} & {subjects[row] for row in test}


def test_the_same_seed_gives_the_same_split() -> None:
    data = rows(list(range(60)))
    assert (
        split(data, "row", 0.3, 1)[1].tolist()
        == split(data, "row", 0.3, 1)[1].tolist()
        != split(data, "row", 0.3, 2)[1].tolist()
    )
    with pytest.raises(ValueError, match="between 0 and 1"):
        split(data, "row", 1.0, 1)
