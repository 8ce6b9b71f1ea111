"""What the kernels ask of UTF-8 bytes: white space, line breaks, code points. All take (bytes, position, end)."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numpy as np
from numba import njit, uint64

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLY = np.uint64(0xD6E8FEB86659FD93)
BASE = np.uint64(0x100000001B3)  # of the polynomial over bytes; odd, so that it can be divided by modulo 2^64

# What a byte may be, so that loops pass over most bytes with one look: white space or a break of one byte, the first byte of a
# longer one or of an ellipsis, the inside of a character, one of # and full stop.
BLANK, BREAK, LEAD, INSIDE, COUNTED = 1, 2, 4, 8, 16
KIND = np.zeros(256, np.uint8)
for _byte in range(256):
    KIND[_byte] = (
        BLANK * (_byte == 32 or 9 <= _byte <= 13 or 28 <= _byte <= 31)
        | BREAK * (10 <= _byte <= 13 or 28 <= _byte <= 30)
        | LEAD * (_byte in (0xC2, 0xE1, 0xE2, 0xE3))
        | INSIDE * (_byte & 0xC0 == 0x80)
        | COUNTED * (_byte in (35, 46))
    )


@njit(cache=True)
def finish(hash_, length):
    """The polynomial of `length` bytes, mixed. Never 0, which marks an empty slot."""
    x = hash_ ^ (uint64(length) * _GOLDEN)
    x ^= x >> uint64(32)
    x *= _MULTIPLY
    x ^= x >> uint64(32)
    x *= _MULTIPLY
    x ^= x >> uint64(32)
    return x if x != uint64(0) else uint64(1)


@njit(cache=True)
def hash_of(data, first, last):
    """Of data[first:last], 64 bits."""
    hash_ = uint64(0)
    for i in range(first, last):
        hash_ = hash_ * BASE + uint64(data[i]) + uint64(1)
    return finish(hash_, last - first)


@njit(cache=True)
def space(data, i, end):
    """Bytes of the white space that begins at i, as `str.isspace` has it; 0 where none does."""
    c = data[i]
    kind = KIND[c]
    if kind & (BLANK | LEAD) == 0:
        return 0
    if kind & BLANK:
        return 1
    if c == 0xC2:
        return 2 if i + 1 < end and (data[i + 1] == 0x85 or data[i + 1] == 0xA0) else 0
    if i + 2 >= end:
        return 0
    a, b = data[i + 1], data[i + 2]
    if c == 0xE2:
        wide = a == 0x80 and (b <= 0x8A or b == 0xA8 or b == 0xA9 or b == 0xAF)
        return 3 if wide or (a == 0x81 and b == 0x9F) else 0
    return 3 if (c == 0xE1 and a == 0x9A and b == 0x80) or (c == 0xE3 and a == 0x80 and b == 0x80) else 0


@njit(cache=True)
def line_break(data, i, end):
    """Bytes of the line break that begins at i, as `str.splitlines` has it; 0 where none does."""
    c = data[i]
    if KIND[c] & (BREAK | LEAD) == 0:
        return 0
    if c == 13:
        return 2 if i + 1 < end and data[i + 1] == 10 else 1
    if 10 <= c <= 12 or 28 <= c <= 30:
        return 1
    if c == 0xC2 and i + 1 < end and data[i + 1] == 0x85:
        return 2
    if c == 0xE2 and i + 2 < end and data[i + 1] == 0x80 and (data[i + 2] == 0xA8 or data[i + 2] == 0xA9):
        return 3
    return 0


@njit(cache=True)
def strip_left(data, first, last):
    """Where data[first:last] begins without the white space before it."""
    while first < last:
        width = space(data, first, last)
        if width == 0:
            break
        first += width
    return first


@njit(cache=True)
def strip_right(data, first, last):
    """Where data[first:last] ends without the white space behind it."""
    while last > first:
        if space(data, last - 1, last) == 1:
            last -= 1
        elif last - first >= 2 and space(data, last - 2, last) == 2:
            last -= 2
        elif last - first >= 3 and space(data, last - 3, last) == 3:
            last -= 3
        else:
            break
    return last


@njit(cache=True)
def characters(data, first, last):
    """How many data[first:last] has."""
    count = 0
    for i in range(first, last):
        count += (data[i] & 0xC0) != 0x80
    return count


@njit(cache=True)
def code_point(data, i):
    """Of the character that begins at i. Arrow's strings are valid UTF-8."""
    c = np.int64(data[i])
    if c < 0x80:
        return c
    if c < 0xE0:
        return (c & 0x1F) << 6 | (data[i + 1] & 0x3F)
    if c < 0xF0:
        return (c & 0x0F) << 12 | (data[i + 1] & 0x3F) << 6 | (data[i + 2] & 0x3F)
    return (c & 7) << 18 | (data[i + 1] & 0x3F) << 12 | (data[i + 2] & 0x3F) << 6 | (data[i + 3] & 0x3F)


@njit(cache=True)
def last_point(data, first, last):
    """Code point of the last character of data[first:last], which is not empty."""
    i = last - 1
    while i > first and (data[i] & 0xC0) == 0x80:
        i -= 1
    return code_point(data, i)


@njit(cache=True)
def among(bits, point):
    """Whether a code point is in a set of `point_set`."""
    return (bits[point >> 3] >> np.uint8(point & 7)) & np.uint8(1) != 0
