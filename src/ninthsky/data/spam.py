"""Lines of spam shells: lures, telephone numbers, lists of places. What is counted in a line is `data.counts`'s matter."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ninthsky.data import counts

PHONE = re.compile(
    r"\+?\(?\d{3,4}\)?[-– .]\d{3,4}[-– .]?\d{3,4}|\b1-?8\d\d-|\b[48]00[-– ]?\d{3,4}|[:：]{1,2}\s?\d{5,}|\d{5,}\s?[(（]"
)
_DIGITS = 4  # of a telephone number, at least
_LIST = 20  # characters from which on a list of places says something


def spam_lines(lines: Sequence[str]) -> NDArray[np.bool_]:
    """Two signs of a shell in one short line, or a line that is mostly place names; bool [lines]."""
    if not lines:
        return np.zeros(0, bool)
    encoded = [line.encode() for line in lines]
    ends = np.cumsum([len(line) for line in encoded])
    bounds = np.stack([ends - [len(line) for line in encoded], ends], axis=1)
    rows: Any = counts.count(np.frombuffer(b"".join(encoded), np.uint8), bounds, spam=True)[0]
    length = rows[:, counts.CHARACTERS]
    places = (rows[:, counts.PLACES] > 0.6 * length) | (rows[:, counts.NAMES] > 0.8 * length)
    signs = rows[:, counts.LURES].copy()
    for at in np.flatnonzero(~places & (signs < 3) & (length <= counts.SHORT) & (rows[:, counts.DIGIT] >= _DIGITS)):
        signs[at] += 2 * len(PHONE.findall(lines[int(at)]))
    return np.where(places, length > _LIST, (length <= counts.SHORT) & (signs >= 3))


def spam_shares(texts: Sequence[str]) -> NDArray[np.float64]:
    """Share of each text's characters that stand in spam lines; float64 [texts]."""
    lines = [[line for line in map(str.strip, text.split("\n")) if line] for text in texts]
    flat = [line for own in lines for line in own]
    owner = np.repeat(np.arange(len(texts)), [len(own) for own in lines])
    size = np.array([len(line) for line in flat], np.float64)
    total = np.bincount(owner, size, len(texts))
    return np.bincount(owner, size * spam_lines(flat), len(texts)) / np.maximum(total, 1)
