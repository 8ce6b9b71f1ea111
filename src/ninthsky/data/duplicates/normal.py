"""Texts as duplicates are sought in them: tokens of letters and digits, whatever their case, width, accents and punctuation.

Each code point is folded by a table: NFKD, case folding, decimal digits to ASCII's, U+0300-036F (accents) taken away, then
NFC. A token is a run of letters, digits and marks, or one kana, Han or Hangul character; all else stands between tokens.
The table looks at one code point at a time: what composes over several (half-width voiced kana, loose jamo) stays apart.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import functools
import re
import unicodedata
from typing import Any, NamedTuple

import numpy as np
from numba import njit, uint64
from numpy.typing import NDArray

Array = NDArray[Any]

BETWEEN, WORD, ALONE, NOTHING, SEVERAL = range(5)  # what a code point is: NOTHING is passed over, SEVERAL look up a sequence
_TABLED = 0x20000  # code points below have entries of their own; above, only compatibility ideographs change
_IDEOGRAPHS = range(0x20000, 0x32000)
_COMPATIBLE = range(0x2F800, 0x2FA20)
_ACCENTS = re.compile("[\u0300-\u036f]")


class Tables(NamedTuple):
    """`ascii` uint8 [128]: the folded byte, 0 between tokens. `points` uint32: kind << 24 | code point or sequence number.

    Sequence s is sequences[s + 1 : s + 1 + sequences[s]], each kind << 24 | code point.
    """

    ascii: Array
    points: Array
    sequences: Array


def fold(text: str) -> str:
    """The folding, the slow way, of which the tables are made."""
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    digits = "".join(str(unicodedata.decimal(c, c)) for c in folded)
    return unicodedata.normalize("NFC", _ACCENTS.sub("", digits))


def kind(character: str) -> int:
    """Of a folded character."""
    point = ord(character)
    if 0x3041 <= point <= 0x30FF or 0x3400 <= point <= 0x9FFF or 0xAC00 <= point <= 0xD7A3 or point in _IDEOGRAPHS:
        return ALONE if unicodedata.category(character)[0] != "P" and character not in "\u30fb\u309b\u309c" else BETWEEN
    return WORD if character.isalnum() or unicodedata.category(character)[0] == "M" else BETWEEN


@functools.cache
def tables() -> Tables:
    """Of this Python's Unicode version; about a fifth of a second, once per process."""
    points = np.zeros(_COMPATIBLE.stop, np.uint32)
    sequences: list[int] = [0]  # sequence 0 is empty
    for point in (*range(_TABLED), *_COMPATIBLE):
        folded = fold(chr(point)) if not 0xD800 <= point < 0xE000 else ""
        entries = [kind(character) << 24 | ord(character) for character in folded]
        if len(entries) == 1:
            points[point] = entries[0]
        elif not entries:
            points[point] = NOTHING << 24
        else:
            points[point] = SEVERAL << 24 | len(sequences)
            sequences += [len(entries), *entries]
    ascii_ = np.where(points[:128] >> 24 == WORD, points[:128], 0).astype(np.uint8)
    beyond = np.arange(_TABLED, _COMPATIBLE.start, dtype=np.uint32)
    points[_TABLED : _COMPATIBLE.start] = beyond | np.uint32(ALONE << 24)
    return Tables(ascii_, points, np.array(sequences, np.uint32))


@njit(cache=True)
def mix(x):
    """Finaliser of MurmurHash3: every input bit reaches every output bit.

    All operands are uint64: numba promotes uint32 with an int literal to float64 or int64 in silence, and that once biased
    every estimate by +.22 (tests/data/duplicates/test_minhash.py holds them against exact Jaccard).
    """
    x ^= x >> uint64(33)
    x *= uint64(0xFF51AFD7ED558CCD)
    x ^= x >> uint64(33)
    x *= uint64(0xC4CEB9FE1A85EC53)
    return x ^ (x >> uint64(33))


@njit(cache=True)
def tokens(data, begin, end, ascii_, points, sequences, out, places):
    """Hashes of the tokens of UTF-8 bytes data[begin:end] into `out` uint64; the number of them.

    `out` holds `room(end - begin)`. `places` int64 [room, 2] gets the bytes [first, last) of each token, unless it is empty.
    """
    located = len(places) > 0
    count = 0
    token = uint64(0)
    inside = False
    first = last = i = begin
    while i < end:
        c = data[i]
        if c < 128:
            folded = ascii_[c]
            if folded != 0:
                if not inside:
                    inside, first = True, i
                token = token * uint64(0x100000001B3) + uint64(folded) + uint64(1)
                last = i + 1
            elif inside:
                out[count] = mix(token)
                if located:
                    places[count, 0], places[count, 1] = first, last
                count += 1
                inside, token = False, uint64(0)
            i += 1
            continue
        if c < 0xE0:
            size, point = 2, uint64(c & 0x1F)
        elif c < 0xF0:
            size, point = 3, uint64(c & 0x0F)
        else:
            size, point = 4, uint64(c & 0x07)
        for k in range(i + 1, min(i + size, end)):
            point = (point << uint64(6)) | uint64(data[k] & 0x3F)
        entry = uint64(points[point]) if point < uint64(len(points)) else uint64(0)
        what = entry >> uint64(24)
        at, stop = uint64(0), uint64(1)
        if what == uint64(4):
            at = (entry & uint64(0xFFFFFF)) + uint64(1)
            stop = at + uint64(sequences[at - uint64(1)])
        elif what == uint64(3):
            stop = uint64(0)
        while at < stop:
            if what == uint64(4):
                entry = uint64(sequences[at])
            code = entry & uint64(0xFFFFFF)
            each = entry >> uint64(24)
            if each == uint64(1):
                if not inside:
                    inside, first = True, i
                token = token * uint64(0x100000001B3) + code + uint64(1)
                last = i + size
            else:
                if inside:
                    out[count] = mix(token)
                    if located:
                        places[count, 0], places[count, 1] = first, last
                    count += 1
                    inside, token = False, uint64(0)
                if each == uint64(2):
                    out[count] = mix(code + uint64(1))
                    if located:
                        places[count, 0], places[count, 1] = i, i + size
                    count += 1
            at += uint64(1)
        i += size
    if inside:
        out[count] = mix(token)
        if located:
            places[count, 0], places[count, 1] = first, last
        count += 1
    return count


@njit(cache=True)
def room(size):
    """Tokens that `size` bytes give at most: no code point gives more than two a byte (six kana of a squared word)."""
    return 2 * size + 1
