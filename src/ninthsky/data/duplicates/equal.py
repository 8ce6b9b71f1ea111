"""Equal texts: of each group the document of the smallest rank stays, of equal ranks the first."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ninthsky.data.duplicates.runs import Shards

Array = NDArray[Any]

EQUAL = np.dtype([("document", "<i8"), ("survivor", "<i8")])


def equal(shards: Shards, part: int, parts: int) -> Array:
    """EQUAL of one partition of the keys: documents that go, and the one that stays instead."""
    keys, documents, records = shards.merged("texts", part, parts)
    order = np.lexsort((documents, records["rank"], records["second"], keys))
    keys, documents, second = keys[order], documents[order], records["second"][order]
    again = np.zeros(len(keys), bool)
    again[1:] = (keys[1:] == keys[:-1]) & (second[1:] == second[:-1])
    first = np.maximum.accumulate(np.where(again, 0, np.arange(len(keys))))
    found = np.empty(int(again.sum()), EQUAL)
    found["document"], found["survivor"] = documents[again], documents[first[again]]
    return found
