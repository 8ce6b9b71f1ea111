"""The figures that rules are held against, counted over UTF-8 bytes and word numbers; one kernel per family of rules.

Counting follows datatrove 0.10's filters, so that equal thresholds give equal decisions: shares of characters are of all of a
text's characters; an n-gram that is repeated is counted as joined text; the empty end of a split counts where theirs does.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, uint64
from numpy.typing import NDArray

from ninthsky.data.rules.utf8 import (
    BREAK,
    COUNTED,
    INSIDE,
    KIND,
    LEAD,
    among,
    characters,
    code_point,
    finish,
    hash_of,
    last_point,
    line_break,
    strip_left,
    strip_right,
)
from ninthsky.data.rules.words import ALPHABETIC, FIRST_STOP, HAN, LATIN, VISIBLE

Array = NDArray[Any]

_STEP = np.uint64(0x9E3779B97F4A7C15)  # odd: n-grams of words in another order have another hash
TOP, REPEATED = (2, 3, 4), (5, 6, 7, 8, 9, 10)  # sizes of n-grams
LINES = (
    "hash_share", "ellipsis_share", "bullet_lines", "ellipsis_lines", "terminal_lines", "short_lines",
    "repeated_line_characters", "newlines_per_word",
)  # fmt: skip
WORDS = (
    "words", "word_length", "alphabetic_share", "letter_share", "stop_words", "visible_words", "spoken_words",
    "alphabetic_runs",
)  # fmt: skip
REPETITION = (
    "duplicate_paragraphs", "duplicate_paragraph_characters", "duplicate_lines", "duplicate_line_characters",
    *(f"top_{n}_gram" for n in TOP), *(f"repeated_{n}_grams" for n in REPEATED),
)  # fmt: skip
FIGURES = (*WORDS, *LINES, *REPETITION)


def point_set(characters: str | frozenset[str]) -> Array:
    """A set of code points as bits, for `among`: uint8 [0x110000 / 8]."""
    bits = np.zeros(0x110000 >> 3, np.uint8)
    for character in characters:
        bits[ord(character) >> 3] |= 1 << (ord(character) & 7)
    return bits


@njit(cache=True)
def count_words(run, first, word_first, words, lengths, letters, flags, out):
    """Fills WORDS, out float64 [N, 8]. The last one is over runs between white space, all others over the words in them."""
    for n in range(len(first) - 1):
        total = visible = visible_length = alphabetic = letter = length = han = latin = stops = runs = 0
        for r in range(first[n], first[n + 1]):
            before = alphabetic
            for w in range(word_first[run[r]], word_first[run[r] + 1]):
                word = words[w]
                flag = flags[word]
                total += 1
                length += lengths[word]
                letter += letters[word]
                if flag & VISIBLE:
                    visible += 1
                    visible_length += lengths[word]
                alphabetic += flag & ALPHABETIC != 0
                han += flag & HAN != 0
                latin += flag & LATIN != 0
                stops |= flag >> FIRST_STOP
            runs += alphabetic > before
        different = 0
        while stops:
            different += stops & 1
            stops >>= 1
        out[n, 0] = total
        out[n, 1] = visible_length / visible if visible else 0.0
        out[n, 2] = alphabetic / total if total else 0.0
        out[n, 3] = letter / length if length else 0.0
        out[n, 4] = different
        out[n, 5] = visible
        out[n, 6] = latin + 0.6 * han
        out[n, 7] = runs / (first[n + 1] - first[n]) if first[n + 1] > first[n] else 0.0


@njit(cache=True)
def _bullet(data, begin, end, bullets):
    head = strip_left(data, begin, end)
    return head < end and among(bullets, code_point(data, head))


@njit(cache=True)
def _trails_off(data, begin, end):
    """Whether the line ends in an ellipsis, of one character or of three."""
    tail = strip_right(data, begin, end)
    if tail - begin < 3:
        return False
    a, b, c = data[tail - 3], data[tail - 2], data[tail - 1]
    return (a == 46 and b == 46 and c == 46) or (a == 0xE2 and b == 0x80 and c == 0xA6)


@njit(cache=True)
def count_lines(data, offsets, per_word, ends, bullets, short, keys, marks, out):
    """Fills LINES, out float64 [N, 8]. `per_word` float64 [N]: words of each text; `short`: characters of a short line.

    `keys` and `marks` are scratch, uint64 [a power of two, at least twice a text's words and line feeds]; marks[-1] counts.
    """
    mark = marks[-1]
    for n in range(len(offsets) - 1):
        start, end = offsets[n], offsets[n + 1]
        many = per_word[n]
        inside = newlines = hashes = ellipses = 0
        # Lines as str.splitlines has them: nothing after a last break.
        lines = bulleted = trailing = 0
        i = begin = start
        stops = start  # behind the last ellipsis of three stops, which may not overlap
        while i < end:
            kind = KIND[data[i]]
            if kind & (BREAK | LEAD | INSIDE | COUNTED) == 0:
                i += 1
                continue
            if kind & INSIDE:
                inside += 1
                i += 1
                continue
            if kind & COUNTED:
                hashes += data[i] == 35
                if data[i] == 46 and i >= stops and i + 2 < end and data[i + 1] == 46 and data[i + 2] == 46:
                    ellipses += 1
                    stops = i + 3
                i += 1
                continue
            width = line_break(data, i, end)
            if width == 0:
                ellipses += data[i] == 0xE2 and i + 2 < end and data[i + 1] == 0x80 and data[i + 2] == 0xA6
                i += 1
                continue
            newlines += data[i] == 10 or (width == 2 and data[i] == 13)
            inside += 0 if kind & BREAK else width - 1
            lines += 1
            bulleted += _bullet(data, begin, i, bullets)
            trailing += _trails_off(data, begin, i)
            i += width
            begin = i
        if begin < end:
            lines += 1
            bulleted += _bullet(data, begin, end, bullets)
            trailing += _trails_off(data, begin, end)
        count = end - start - inside
        # Lines as split("\n") has them, blank ones left out.
        mark += uint64(1)
        mask = _mask(newlines + 1)
        full = closed = brief = repeated = 0
        begin = start
        for i in range(start, end + 1):
            if i < end and data[i] != 10:
                continue
            if strip_left(data, begin, i) < i:
                full += 1
                size = characters(data, begin, i)
                brief += size <= short
                closed += among(ends, last_point(data, begin, i))
                repeated += size * _seen(keys, marks, mask, mark, hash_of(data, begin, i))
            begin = i + 1
        out[n, 0] = hashes / many if many else 0.0
        out[n, 1] = ellipses / many if many else 0.0
        out[n, 2] = bulleted / lines if lines else 0.0
        out[n, 3] = trailing / lines if lines else 0.0
        out[n, 4] = closed / full if full else 0.0
        out[n, 5] = brief / full if full else 0.0
        out[n, 6] = repeated / (count - newlines) if count > newlines else 0.0
        out[n, 7] = newlines / many if many else 0.0
    marks[-1] = mark


@njit(cache=True)
def _seen(keys, marks, mask, mark, hash_):
    """Whether `hash_` was put into the table under this mark before; it is from now on. A new mark empties the table."""
    slot = hash_ & mask
    while marks[slot] == mark and keys[slot] != hash_:
        slot = (slot + uint64(1)) & mask
    if marks[slot] == mark:
        return 1
    marks[slot], keys[slot] = mark, hash_
    return 0


@njit(cache=True)
def _mask(entries):
    """Of the smallest table that is at most half full: small tables stay in the cache."""
    size = 1024
    while size < 2 * entries:
        size *= 2
    return uint64(size - 1)


@njit(cache=True)
def newlines(data, offsets):
    """The most line feeds in one text."""
    most = 0
    for n in range(len(offsets) - 1):
        count = 0
        for i in range(offsets[n], offsets[n + 1]):
            count += data[i] == 10
        most = max(most, count)
    return most


@njit(cache=True)
def _repeated_parts(data, start, end, least, mask, mark, keys, marks):
    """Parts between runs of `least` line feeds or more: (parts, repeated ones, their characters)."""
    parts = repeated = size = 0
    i = begin = start
    while True:
        width = 0
        while i + width < end and data[i + width] == 10:
            width += 1
        if i < end and width < least:
            i += max(width, 1)
            continue
        parts += 1
        if _seen(keys, marks, mask, mark, hash_of(data, begin, i)):
            repeated += 1
            size += characters(data, begin, i)
        if i == end:
            return parts, repeated, size
        i += width
        begin = i


@njit(cache=True)
def _scratch(room):
    power, inverse = np.ones(room, np.uint64), np.ones(room, np.uint64)
    return (
        np.empty(room, np.int64), np.zeros(room, np.int64), np.zeros(room, np.uint64), power, inverse, np.empty(room, np.uint64)
    )  # fmt: skip


@njit(cache=True)
def count_repetition(
    data,
    offsets,
    run,
    first,
    word_first,
    words,
    hashes,
    polynomials,
    powers,
    inverses,
    lengths,
    scale,
    keys,
    marks,
    counts,
    out,
):
    """Fills REPETITION, out float64 [N, 13], zeros at first. N-grams are of `scale` times as many words. Scratch as above."""
    mark = marks[-1]
    room = 1 << 14
    text, at, polynomial, power, inverse, grams = _scratch(room)
    for n in range(len(offsets) - 1):
        start, end = offsets[n], offsets[n + 1]
        size = characters(data, start, end)
        if size == 0:
            continue
        feeds = 0
        for i in range(start, end):
            feeds += data[i] == 10
        mask = _mask(feeds + 1)
        mark += uint64(1)
        head, tail = strip_left(data, start, end), strip_right(data, start, end)
        parts, repeated, repeated_size = _repeated_parts(data, head, max(tail, head), 2, mask, mark, keys, marks)
        out[n, 0], out[n, 1] = repeated / parts, repeated_size / size
        mark += uint64(1)
        parts, repeated, repeated_size = _repeated_parts(data, start, end, 1, mask, mark, keys, marks)
        out[n, 2], out[n, 3] = repeated / parts, repeated_size / size
        total = 0
        for r in range(first[n], first[n + 1]):
            total += word_first[run[r] + 1] - word_first[run[r]]
        if total + 1 > room:
            while total + 1 > room:
                room *= 2
            text, at, polynomial, power, inverse, grams = _scratch(room)
        # Sums from the text's start on (characters, the polynomial of the bytes, its power): any n-gram costs the same.
        w = 0
        for r in range(first[n], first[n + 1]):
            for k in range(word_first[run[r]], word_first[run[r] + 1]):
                word = words[k]
                text[w] = word
                at[w + 1] = at[w] + lengths[word]
                polynomial[w + 1] = polynomial[w] * powers[word] + polynomials[word]
                power[w + 1] = power[w] * powers[word]
                inverse[w + 1] = inverse[w] * inverses[word]
                w += 1
        mask = _mask(total + 1)
        for which in range(3):
            size_of = (which + 2) * scale
            if total < size_of:
                continue
            mark += uint64(1)
            best = 0
            for i in range(total - size_of + 1):
                hash_ = uint64(0)
                for k in range(i, i + size_of):
                    hash_ = hash_ * _STEP + hashes[text[k]]
                hash_ ^= hash_ >> uint64(29)
                slot = hash_ & mask
                while marks[slot] == mark and keys[slot] != hash_:
                    slot = (slot + uint64(1)) & mask
                if marks[slot] == mark:
                    counts[slot] += 1
                else:
                    marks[slot], keys[slot], counts[slot] = mark, hash_, 1
                grams[i] = slot
                best = max(best, counts[slot])
            for i in range(total - size_of + 1):
                if counts[grams[i]] == best:  # the first of the most frequent, joined by blanks where words are set apart
                    joined = at[i + size_of] - at[i] + (size_of - 1 if scale == 1 else 0)
                    out[n, 4 + which] = best * joined / size
                    break
        for which in range(6):
            size_of = (which + 5) * scale
            mark += uint64(1)
            repeated_size = i = 0
            while i + size_of <= total:
                hash_ = polynomial[i + size_of] - polynomial[i] * power[i + size_of] * inverse[i]
                joined = at[i + size_of] - at[i]
                if _seen(keys, marks, mask, mark, finish(hash_, joined)):
                    repeated_size += joined
                    i += size_of
                else:
                    i += 1
            out[n, 7 + which] = repeated_size / size
    marks[-1] = mark
