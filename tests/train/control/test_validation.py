from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from ninthsky.errors import UserError
from ninthsky.train.control.validation import set_apart, validation_cursor
from ninthsky.train.text.cursor import TokenFile


def test_the_end_of_every_part_is_kept_apart_and_never_trained_on() -> None:
    parts = [
        {"source": "a", "language": "en", "start": 0, "tokens": 100},
        {"source": "b", "language": "zh", "start": 100, "tokens": 50},
    ]
    file = TokenFile(np.arange(150), 200, 1, {"tokens": 150, "parts": parts})
    left, apart = set_apart(file, 0.1)
    assert apart.tolist() == [*range(90, 100), *range(145, 150)]
    assert left.tokens.tolist() == [*range(90), *range(100, 145)]
    assert [(part["start"], part["tokens"]) for part in left.parts] == [(0, 90), (90, 45)]
    assert len(left.tokens) == left.split["tokens"]
    whole, end = set_apart(TokenFile(np.arange(40), 50, 1), 0.25)
    assert end.tolist() == list(range(30, 40)) and whole.parts == []


def test_every_validation_is_on_the_same_windows_whatever_the_ranks() -> None:
    cursor = validation_cursor(np.arange(400), 16, 8)
    whole = cursor.read(0)
    assert whole.shape == (8, 17)
    shares = [cursor.read(0, rank, 4) for rank in range(4)]
    assert [row for share in shares for row in share.tolist()] == whole.tolist()
    with pytest.raises(UserError, match="N9-TRN-001"):
        validation_cursor(np.arange(20), 16, 8)
