"""Exact and near duplicates: normalised hashes, MinHash signatures in numba over UTF-8 bytes, banding, connected components.

Shingles are five consecutive tokens; a token is a word, lower-cased, or one CJK character. 112 permutations in 14 bands of 8
(Broder 1997; the parameters are datatrove's and FineWeb's).
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from numba import njit

Array = npt.NDArray[Any]

BANDS, ROWS = 14, 8
_MARKS = re.compile("[\u0300-\u036f]")
PERMUTATIONS = BANDS * ROWS
SHINGLE = 5
_ALL_PAIRS = 32  # buckets up to this size are compared pair by pair, larger ones with their first member

# From a hash and not from a generator, whose stream may change with the library's version.
_MULTIPLIERS = np.array([xxhash.xxh3_64_intdigest(f"multiplier {i}".encode()) | 1 for i in range(PERMUTATIONS)], np.uint64)
_OFFSETS = np.array([xxhash.xxh3_64_intdigest(f"addend {i}".encode()) for i in range(PERMUTATIONS)], np.uint64)


def text_hash(text: str) -> str:
    """Equal for texts that differ only in case, width, white space and punctuation."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return xxhash.xxh3_128_hexdigest("".join(filter(str.isalnum, folded)).encode())


def fold(text: str) -> bytes:
    """What shingles are taken from: compatibility forms and accents folded, lower case, UTF-8."""
    if not text.isascii():
        decomposed = unicodedata.normalize("NFKD", text)
        text = unicodedata.normalize("NFC", _MARKS.sub("", decomposed))
    return text.lower().encode("utf-8", "replace")


def signatures(texts: Sequence[str]) -> Array:
    """MinHash signatures, uint32 [texts, 112]."""
    folded = [fold(text) for text in texts]
    offsets = np.zeros(len(folded) + 1, np.int64)
    np.cumsum([len(part) for part in folded], out=offsets[1:])
    data = np.frombuffer(b"".join(folded) or b"\0", np.uint8)
    out = np.empty((len(folded), PERMUTATIONS), np.uint32)
    _sketch(data, offsets, _MULTIPLIERS, _OFFSETS, out)
    return out


@njit(cache=True)
def _mix(x):  # type: ignore[no-untyped-def]
    """Finaliser of MurmurHash3: every input bit reaches every output bit. All operands are uint64 (see the note in _sketch)."""
    x ^= x >> np.uint64(33)
    x *= np.uint64(0xFF51AFD7ED558CCD)
    x ^= x >> np.uint64(33)
    x *= np.uint64(0xC4CEB9FE1A85EC53)
    return x ^ (x >> np.uint64(33))


@njit(cache=True)
def _kind(value, size):  # type: ignore[no-untyped-def]
    """0 between words, 1 in a word, 2 a token of its own, of a character given as its UTF-8 bytes in one number."""
    if size == 1:
        word = (np.uint64(97) <= value <= np.uint64(122)) or (np.uint64(48) <= value <= np.uint64(57))
        return 1 if word else 0
    if size == 2:  # U+0080-00BF: spaces, signs, punctuation
        return 0 if np.uint64(0xC280) <= value <= np.uint64(0xC2BF) else 1
    if size == 3:
        if np.uint64(0xE28080) <= value <= np.uint64(0xE281AF):  # U+2000-206F: punctuation
            return 0
        if np.uint64(0xE38080) <= value <= np.uint64(0xE380BF):  # U+3000-303F: CJK punctuation
            return 0
        if np.uint64(0xE38180) <= value <= np.uint64(0xE9BFBF):  # U+3040-9FFF: kana, Han
            return 2
        if np.uint64(0xEAB080) <= value <= np.uint64(0xED9EAF):  # U+AC00-D7AF: Hangul
            return 2
    return 1


@njit(cache=True)
def _sketch(data, offsets, multipliers, addends, out):  # type: ignore[no-untyped-def]
    """Tokens, shingles and minima in one pass over the bytes.

    Every operand is uint64: numba promotes uint32 with an int literal to float64 or int64 in silence, and that once biased
    every estimate by +.22. tests/data/test_duplicates.py holds the estimate against exact Jaccard.
    """
    low = np.empty(len(multipliers), np.uint64)
    window = np.zeros(SHINGLE, np.uint64)
    for text in range(len(offsets) - 1):
        low[:] = np.uint64(0xFFFFFFFFFFFFFFFF)
        tokens = 0
        token = np.uint64(0)
        inside = False
        i = offsets[text]
        end = offsets[text + 1]
        while i <= end:  # once past the end, to finish the last word
            size = 1
            value = np.uint64(0)
            if i < end:
                value = np.uint64(data[i])
                if value >= np.uint64(0x80):
                    size = 2 if value < np.uint64(0xE0) else (3 if value < np.uint64(0xF0) else 4)
                    for k in range(i + 1, min(i + size, end)):
                        value = (value << np.uint64(8)) | np.uint64(data[k])
            kind = _kind(value, size)
            if inside and kind != 1:
                tokens = _push(_mix(token), window, tokens, multipliers, addends, low)
                inside = False
                token = np.uint64(0)
            if kind == 1:
                token = token * np.uint64(0x100000001B3) + value + np.uint64(1)
                inside = True
            elif kind == 2:
                tokens = _push(_mix(value + np.uint64(1)), window, tokens, multipliers, addends, low)
            i += size
        if 0 < tokens < SHINGLE:
            for k in range(tokens, SHINGLE):
                window[k] = np.uint64(0)
            _take(window, SHINGLE, multipliers, addends, low)
        for j in range(len(multipliers)):
            out[text, j] = np.uint32(low[j] >> np.uint64(32))


@njit(cache=True)
def _push(token, window, tokens, multipliers, addends, low):  # type: ignore[no-untyped-def]
    """Adds a token, and the shingle that ends with it. Returns the number of tokens."""
    window[tokens % SHINGLE] = token
    tokens += 1
    if tokens >= SHINGLE:
        _take(window, tokens, multipliers, addends, low)
    return tokens


@njit(cache=True)
def _take(window, tokens, multipliers, addends, low):  # type: ignore[no-untyped-def]
    """Adds the shingle that ends with the newest token to the minima."""
    h = np.uint64(0)
    for k in range(SHINGLE):
        h = h * np.uint64(0x9E3779B97F4A7C15) + window[(tokens + k) % SHINGLE]
    h = _mix(h)
    for j in range(len(multipliers)):
        v = multipliers[j] * h + addends[j]
        if v < low[j]:
            low[j] = v


def jaccard(first: Array, second: Array) -> float:
    """Estimated Jaccard similarity of two signatures: the share of equal minima. Standard error sqrt(J(1-J)/112) <= .047."""
    return float(np.mean(first == second))


@dataclass(frozen=True)
class Duplicate:
    """Document `index` goes because `survivor` stays; `similarity` is to the survivor, `linked` the nearest verified member."""

    index: int
    survivor: int
    similarity: float
    linked: int
    linked_similarity: float


def near_duplicates(signatures: Array, order: Sequence[tuple[Any, ...]], threshold: float) -> list[Duplicate]:
    """Documents to drop. `order[i]` ranks document i: of each cluster the smallest stays.

    Candidates share a band; a pair counts when its estimated Jaccard is at least `threshold`; clusters are connected components
    of counted pairs. A pair at J = .8 shares a band with probability 1 - (1 - .8^8)^14 = .92, at .9 with .9998.
    """
    parent = list(range(len(signatures)))
    best: dict[int, tuple[float, int]] = {}

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    compared: set[tuple[int, int]] = set()
    for band in range(BANDS):
        buckets: dict[bytes, list[int]] = defaultdict(list)
        rows = np.ascontiguousarray(signatures[:, band * ROWS : (band + 1) * ROWS])
        for index in range(len(rows)):
            buckets[rows[index].tobytes()].append(index)
        for members in buckets.values():
            firsts = members if len(members) <= _ALL_PAIRS else members[:1]
            for position, first in enumerate(firsts):
                for second in members[position + 1 :]:
                    if (first, second) in compared:
                        continue
                    compared.add((first, second))
                    similarity = jaccard(signatures[first], signatures[second])
                    if similarity >= threshold:
                        parent[max(root(first), root(second))] = min(root(first), root(second))
                        for one, other in ((first, second), (second, first)):
                            best[one] = max(best.get(one, (0.0, -1)), (similarity, -other - 1))
    clusters: dict[int, list[int]] = defaultdict(list)
    for index in best:
        clusters[root(index)].append(index)
    found = []
    for members in clusters.values():
        survivor = min(members, key=lambda index: order[index])
        for index in members:
            if index != survivor:
                similarity, other = best[index]
                found.append(
                    Duplicate(index, survivor, jaccard(signatures[index], signatures[survivor]), -other - 1, similarity)
                )
    return sorted(found, key=lambda duplicate: duplicate.index)
