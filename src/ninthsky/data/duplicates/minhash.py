"""MinHash in numba over Arrow's bytes (Broder 1997): 112 permutations in 16 bands of 7, shingles of five consecutive tokens.

A pair at Jaccard J shares a band with probability 1 - (1 - J^7)^16: .977 at .8, .995 at .85, .12 at .5. What shares a band is
then held against its true Jaccard, over sets of 32-bit hashes of its shingles: exact up to `LARGEST` shingles, above that an
estimate from the smallest `LARGEST` hashes (a bottom-k sketch; deviation sqrt(J(1-J)/k) = .009 at .8).
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import xxhash
from numba import njit, uint32, uint64
from numpy.typing import NDArray

from ninthsky.data.duplicates.normal import mix, room, tables, tokens
from ninthsky.data.rules.judge import buffers

Array = NDArray[Any]

BANDS, ROWS = 16, 7
PERMUTATIONS = BANDS * ROWS
SHINGLE = 5
LARGEST = 2048
_TOGETHER = 4  # shingles that a pass over the permutations takes
_ABSENT = 0xFFFFFFFF

# From a hash and not from a generator, whose stream may change with the library's version.
_MULTIPLIERS = np.array([xxhash.xxh32_intdigest(f"multiplier {i}".encode()) | 1 for i in range(PERMUTATIONS)], np.uint32)
_ADDENDS = np.array([xxhash.xxh32_intdigest(f"addend {i}".encode()) for i in range(PERMUTATIONS)], np.uint32)


class Sketches(NamedTuple):
    """What is kept of N texts.

    `hashes` uint64 [N, 2]: equal for texts of equal tokens. `bands` uint64 [N, 16]: 0 where a text has no token. `sets` uint32:
    sorted shingle hashes, those of text n at sets[first[n] : first[n + 1]].
    """

    hashes: Array
    bands: Array
    sets: Array
    first: Array


def signatures(texts: Sequence[str] | pa.Array) -> Array:
    """MinHash signatures, uint32 [texts, 112]. A text without tokens has all ones."""
    data, offsets = buffers(texts)
    out = np.empty((len(offsets) - 1, PERMUTATIONS), np.uint32)
    _signatures(data, offsets, *tables(), _MULTIPLIERS, _ADDENDS, out)
    return out


def jaccard(first: Array, second: Array) -> float:
    """Estimated Jaccard similarity of two signatures: the share of equal minima. Standard error sqrt(J(1-J)/112) <= .047."""
    return float(np.mean(first == second))


def sketch(texts: Sequence[str] | pa.Array) -> Sketches:
    """What exact and near duplicates are found by."""
    data, offsets = buffers(texts)
    count = len(offsets) - 1
    hashes, bands = np.empty((count, 2), np.uint64), np.empty((count, BANDS), np.uint64)
    first = np.zeros(count + 1, np.int64)
    sets = np.empty(min(int(offsets[-1] - offsets[0]) * 2 + count, count * LARGEST), np.uint32)
    _sketch(data, offsets, *tables(), _MULTIPLIERS, _ADDENDS, hashes, bands, sets, first)
    return Sketches(hashes, bands, sets[: first[-1]].copy(), first)


@njit(cache=True)
def _shingles(found, count, out):
    """32-bit hashes of the shingles of `count` tokens into `out`; their number. Fewer than five tokens are one shingle."""
    if count == 0:
        return 0
    many = max(count - SHINGLE + 1, 1)
    for s in range(many):
        h = uint64(0)
        for k in range(s, min(s + SHINGLE, count)):
            h = h * uint64(0x9E3779B97F4A7C15) + found[k]
        out[s] = uint32(mix(h) >> uint64(32))
    return many


@njit(cache=True)
def _minima(shingles, count, multipliers, addends, low):
    """Minima of each permutation x -> multiplier * x + addend modulo 2^32, over shingles[:count], into `low` uint32."""
    for j in range(len(low)):
        low[j] = uint32(_ABSENT)
    s = 0
    while s + _TOGETHER <= count:
        a, b, c, d = shingles[s], shingles[s + 1], shingles[s + 2], shingles[s + 3]
        for j in range(len(low)):
            m, n = multipliers[j], addends[j]
            first = min(uint32(uint32(m * a) + n), uint32(uint32(m * b) + n))
            second = min(uint32(uint32(m * c) + n), uint32(uint32(m * d) + n))
            low[j] = min(low[j], min(first, second))
        s += _TOGETHER
    while s < count:
        a = shingles[s]
        for j in range(len(low)):
            low[j] = min(low[j], uint32(uint32(multipliers[j] * a) + addends[j]))
        s += 1


@njit(cache=True)
def _longest(offsets):
    longest = 0
    for text in range(len(offsets) - 1):
        longest = max(longest, offsets[text + 1] - offsets[text])
    return room(longest)


@njit(cache=True)
def _signatures(data, offsets, ascii_, points, sequences, multipliers, addends, out):
    size = _longest(offsets)
    found, shingles, nowhere = np.empty(size, np.uint64), np.empty(size, np.uint32), np.empty((0, 2), np.int64)
    for text in range(len(offsets) - 1):
        count = tokens(data, offsets[text], offsets[text + 1], ascii_, points, sequences, found, nowhere)
        _minima(shingles, _shingles(found, count, shingles), multipliers, addends, out[text])


@njit(cache=True)
def _sketch(data, offsets, ascii_, points, sequences, multipliers, addends, hashes, bands, sets, first):
    size = _longest(offsets)
    found, shingles, nowhere = np.empty(size, np.uint64), np.empty(size, np.uint32), np.empty((0, 2), np.int64)
    low = np.empty(len(multipliers), np.uint32)
    at = 0
    for text in range(len(offsets) - 1):
        count = tokens(data, offsets[text], offsets[text + 1], ascii_, points, sequences, found, nowhere)
        one, two = uint64(count), ~uint64(count)
        for k in range(count):
            one = mix(one ^ found[k]) + uint64(0x9E3779B97F4A7C15)
            two = two * uint64(0xD6E8FEB86659FD93) + found[k]
        hashes[text, 0], hashes[text, 1] = one, mix(two)
        many = _shingles(found, count, shingles)
        _minima(shingles, many, multipliers, addends, low)
        for band in range(bands.shape[1]):
            h = uint64(band + 1)
            for row in range(band * ROWS, band * ROWS + ROWS):
                h = mix(h ^ uint64(low[row])) + uint64(0x9E3779B97F4A7C15)
            bands[text, band] = max(h, uint64(1)) if many else uint64(0)
        ordered = np.sort(shingles[:many])
        kept = 0
        for k in range(many):
            if kept == LARGEST:
                break
            if k == 0 or ordered[k] != ordered[k - 1]:
                sets[at + kept] = ordered[k]
                kept += 1
        at += kept
        first[text + 1] = at


@njit(cache=True)
def overlap(one, two):
    """Jaccard similarity of two sorted sets; of two bottom-k sketches where one holds `LARGEST` hashes."""
    if len(one) == 0 or len(two) == 0:
        return 0.0
    limit = LARGEST if max(len(one), len(two)) == LARGEST else len(one) + len(two)
    i = j = shared = union = 0
    while union < limit and i < len(one) and j < len(two):
        a, b = one[i], two[j]
        shared += a == b
        i += a <= b
        j += b <= a
        union += 1
    union += min(limit - union, (len(one) - i) + (len(two) - j))
    return shared / union
