"""C4's rules (Raffel et al. 2019, section 2.2), which take lines out of a text and count the sentences of those that stay."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ninthsky.data.rules.utf8 import BLANK, KIND, LEAD, line_break, space, strip_left, strip_right
from ninthsky.data.rules.words import BROKEN, ENDS_SENTENCE, PUNCTUATION, WIDE, Words

Array = NDArray[Any]

LEAST_WORDS, LONGEST_WORD = 3, 1000  # of a line; in characters
_EDIT, _CITATION = np.frombuffer(b"[edit]", np.uint8), np.frombuffer(b"[citation needed]", np.uint8)
# Phrases, each sought where its rarest letter stands.
LOREM, SCRIPT, POLICY = 1, 2, 4
_PHRASES = (
    ("lorem ipsum", "p", LOREM),
    ("javascript", "j", SCRIPT),
    ("terms of use", "f", POLICY),
    ("privacy policy", "v", POLICY),
    ("cookie policy", "k", POLICY),
    ("uses cookies", "k", POLICY),
    ("use of cookies", "k", POLICY),
    ("use cookies", "k", POLICY),
)
_TEXT = np.zeros((len(_PHRASES), 16), np.uint8)
_SIZE, _PLACE, _FOUND = (np.zeros(len(_PHRASES), np.int64) for _ in range(3))
_RARE = np.zeros(256, np.uint8)
for _row, (_phrase, _letter, _what) in enumerate(_PHRASES):
    _TEXT[_row, : len(_phrase)] = np.frombuffer(_phrase.encode(), np.uint8)
    _SIZE[_row], _PLACE[_row], _FOUND[_row] = len(_phrase), _phrase.index(_letter), _what
    _RARE[ord(_letter)] = _RARE[ord(_letter.upper())] = 1


@dataclass(frozen=True)
class Cleaned:
    """N texts without the lines that C4 takes out: data uint8, offsets int64 [N + 1]; what was found in them, float64 [N]."""

    data: Array
    offsets: Array
    sentences: Array
    lorem_ipsum: Array  # 1 where a line has it; the text is not read beyond that line
    curly_bracket: Array


def clean(data: Array, offsets: Array, words: Words, ended: bool) -> Cleaned:
    """`ended`: lines must end in . ? ! " or '. Letters are compared in lower case of ASCII."""
    out = np.empty(int(offsets[-1] - offsets[0]) + len(offsets), np.uint8)
    kept, found = np.zeros(len(offsets), np.int64), np.zeros((2, len(offsets) - 1))
    _take_lines(data, offsets, ended, out, kept, found)
    out = out[: kept[-1]]
    run, gap, first = words.runs(out, kept)
    sentences = np.zeros(len(offsets) - 1)
    _count_sentences(run, gap, first, words.first.values, words.words.values, words.flags.values, sentences)
    return Cleaned(out, kept, sentences, found[0], found[1])


@njit(cache=True)
def _stands(data, i, end, text):
    """Whether `text` stands at i."""
    if i + len(text) > end:
        return False
    same = True
    for k in range(len(text)):
        same &= data[i + k] == text[k]
    return same


@njit(cache=True)
def _phrases(data, first, last):
    """Which of the phrases a line holds, in any case of ASCII letters."""
    found = 0
    for i in range(first, last):
        if _RARE[data[i]] == 0:
            continue
        for row in range(len(_SIZE)):
            begin = i - _PLACE[row]
            if begin < first or begin + _SIZE[row] > last:
                continue
            same = True
            for k in range(_SIZE[row]):
                c = data[begin + k]
                if (c + 32 if 65 <= c <= 90 else c) != _TEXT[row, k]:
                    same = False
                    break
            if same:
                found |= _FOUND[row]
    return found


@njit(cache=True)
def _longest(data, first, last):
    """Characters of the longest word."""
    longest = size = 0
    i = first
    while i < last:
        blank = space(data, i, last)
        size = 0 if blank else size + ((data[i] & 0xC0) != 0x80)
        longest = max(longest, size)
        i += max(blank, 1)
    return longest


@njit(cache=True)
def _without_citations(data, first, last, out, write):
    """Copies a line without [12], [], [edit], [citation needed]. Returns where it ends."""
    i = first
    while i < last:
        if data[i] == 91:
            k = i + 1
            while k < last and 48 <= data[k] <= 57:
                k += 1
            if k < last and data[k] == 93:
                i = k + 1
                continue
            if _stands(data, i, last, _EDIT):
                i += len(_EDIT)
                continue
            if _stands(data, i, last, _CITATION):
                i += len(_CITATION)
                continue
        out[write] = data[i]
        write += 1
        i += 1
    return write


@njit(cache=True)
def _take_lines(data, offsets, ended, out, kept, found):
    for n in range(len(offsets) - 1):
        end = offsets[n + 1]
        begin = offsets[n]
        to = kept[n]
        while begin < end:
            # One pass over the line: where it ends, its words and their longest, whether citations and brackets may be in it.
            i = word = begin
            words = longest = width = 0
            cited = curly = False
            while i < end:
                kind = KIND[data[i]]
                if kind & (BLANK | LEAD) == 0:
                    cited |= data[i] == 91
                    curly |= data[i] == 123
                    i += 1
                    continue
                blank = space(data, i, end)
                if blank == 0:
                    i += 1
                    continue
                if i > word:
                    words += 1
                    longest = max(longest, i - word)
                width = line_break(data, i, end)
                if width:
                    break
                i += blank
                word = i
            if i == end and i > word:
                words += 1
                longest = max(longest, i - word)
            first, last = strip_left(data, begin, i), strip_right(data, begin, i)
            begin = i + width
            # In bytes it may only seem too long.
            if longest > LONGEST_WORD and _longest(data, first, last) > LONGEST_WORD:
                continue
            # The line without citations, behind what was kept before. A line feed is put between lines.
            line = to + (to > kept[n])
            write = line
            if cited:
                write = _without_citations(data, first, last, out, write)
            else:
                for i in range(first, last):  # numba compiles a loop ten times faster than an assignment of slices
                    out[write + i - first] = data[i]
                write += last - first
            if ended:
                if write == line:
                    continue
                c = out[write - 1]
                if not (c == 46 or c == 63 or c == 33 or c == 34 or c == 39):
                    continue
                if write - line >= 3 and out[write - 1] == 46 and out[write - 2] == 46 and out[write - 3] == 46:
                    continue
            if words < LEAST_WORDS:
                continue
            found_here = _phrases(out, line, write)
            if found_here & LOREM:
                found[0, n] = 1.0
                break
            if found_here & SCRIPT:
                continue
            if curly:
                found[1, n] = 1.0
                break
            if found_here & POLICY:
                continue
            if line > to:
                out[to] = 10
            to = write
        kept[n + 1] = to


@njit(cache=True)
def _count_sentences(run, gap, first, word_first, words, flags, out):
    """As spaCy's sentencizer, line by line: behind an ending mark, a sentence begins with the first word that is no mark."""
    for n in range(len(first) - 1):
        count = 0
        ended = False
        for r in range(first[n], first[n + 1]):
            if r == first[n] or gap[r] == BROKEN or (ended and gap[r] == WIDE):
                count += 1
                ended = False
            for w in range(word_first[run[r]], word_first[run[r] + 1]):
                flag = flags[words[w]]
                if ended and not flag & PUNCTUATION and not flag & ENDS_SENTENCE:
                    count += 1
                    ended = False
                elif flag & ENDS_SENTENCE:
                    ended = True
        out[n] = count
