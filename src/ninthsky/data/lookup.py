"""A table of names that kernels look up by a 64-bit hash of their bytes."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numba import njit

from ninthsky.data.rules.utf8 import hash_of


class Table:
    """Bytes -> a small number, for kernels: slots by the low bits of a 64-bit hash, filled a quarter at most."""

    def __init__(self, entries: Iterable[tuple[str, int]]) -> None:
        pairs = list(entries)
        size = 1 << (4 * len(pairs)).bit_length()
        self.keys, self.values = np.zeros(size, np.uint64), np.zeros(size, np.int64)
        for name, value in pairs:
            data = np.frombuffer(name.encode(), np.uint8)
            key = hash_of(data, 0, len(data))
            at = int(key) & (size - 1)
            while self.keys[at] not in (0, key):
                at = (at + 1) & (size - 1)
            self.keys[at], self.values[at] = key, value


@njit(cache=True)
def find(keys, values, key, missing):
    """The value of a hash in a Table, or `missing`."""
    mask = len(keys) - 1
    at = np.int64(key & np.uint64(mask))
    while keys[at] != np.uint64(0):
        if keys[at] == key:
            return values[at]
        at = (at + 1) & mask
    return missing
