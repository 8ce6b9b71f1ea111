"""Words of texts, without looking at one twice: each run of bytes between white space is cut into words once, then remembered.

English words are spaCy's (`spacy.blank("en")`), as datatrove's filters have them. spaCy never joins what white space separates,
so a run always gives the same words. In Chinese and Japanese each ideograph or kana is a word, and so is each run of anything
else.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import xxhash
from numba import njit, uint64
from numpy.typing import NDArray

from ninthsky.data.rules.utf8 import BASE, code_point, finish, space

Array = NDArray[Any]
Cut = Callable[[str], Sequence[str]]

# Flags of a word; stop word number n has bit FIRST_STOP + n.
VISIBLE, ALPHABETIC, ENDS_SENTENCE, PUNCTUATION, HAN, LATIN = 1, 2, 4, 8, 16, 32
FIRST_STOP = 8
WIDE, BROKEN = 1, 2  # white space before a run: more than one blank, which spaCy takes for a token; a line feed
STOP_WORDS = {
    "en": ("the", "be", "to", "of", "and", "that", "have", "with"),  # Gopher's eight (arXiv 2112.11446, appendix A1)
    "zh": tuple("的了是在和有不我这他一就也与为中上"),
}
# Characters of which no word consists: those of cc_net (Wenzek et al. 2019, text_normalizer.py), with the control characters.
SYMBOLS = frozenset("!/—”:％１〈&(、━\\【#%「」，】；+^]~“《„';’{|∶´[=-`*．（–？！：$～«〉,><》)?）。…@_.\"}►»") | {
    chr(point) for first, last in ((0, 9), (11, 32), (127, 160)) for point in range(first, last)
}
REMEMBERED = 1 << 20  # runs, after which everything is forgotten: web text never stops bringing new ones

WIDE_LANGUAGES = ("zh", "ja")  # that do not set words apart

_BASE, _MASK = int(BASE), (1 << 64) - 1
_WIDE_CHARACTER = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_IDEOGRAPH = re.compile(r"[\u3400-\u9fff]")
_PLAIN = re.compile(r"([A-Za-z]+)([,;:!?]?)|([A-Za-z]*[a-z])(\.)")


@cache
def sentence_ends() -> frozenset[str]:
    """Characters with which a sentence ends, of all scripts: those of spaCy's sentencizer."""
    from spacy.pipeline import Sentencizer

    return frozenset(Sentencizer.default_punct_chars)


@cache
def english() -> Cut:
    """Cuts one run into spaCy's words. Plain letters, with at most one mark behind them, need no spaCy unless it lists them."""
    import spacy

    tokenizer: Any = spacy.blank("en").tokenizer
    listed = frozenset(tokenizer.rules)

    def cut(run: str) -> Sequence[str]:
        plain = _PLAIN.fullmatch(run)
        if plain is not None and run not in listed:
            word, mark = plain[1] or plain[3], plain[2] or plain[4]
            if not mark:
                return (word,)
            if word not in listed:
                return word, mark
        return [token.text for token in tokenizer(run)]

    return cut


def _whole(run: str) -> Sequence[str]:
    """Of languages that do not set words apart: each run is a word, `_number` has cut it."""
    return (run,)


class Column:
    """A numpy array that is appended to; doubled when full, so that appending costs no copy of all of it."""

    def __init__(self, dtype: Any, *start: int) -> None:
        self._data, self._size = np.zeros(1024, dtype), len(start)
        self._data[: len(start)] = start

    @property
    def values(self) -> Array:
        return self._data[: self._size]

    def extend(self, values: Sequence[int]) -> None:
        size = self._size + len(values)
        if size > len(self._data):
            wider = np.zeros(max(size, 2 * len(self._data)), self._data.dtype)
            wider[: self._size] = self.values
            self._data = wider
        self._data[self._size : size] = np.array(values, self._data.dtype)
        self._size = size


class Words:
    """Words of one language that were met so far. `runs` numbers the runs of texts; the columns say what their words are."""

    def __init__(self, language: str) -> None:
        self.wide = language in WIDE_LANGUAGES
        self._cut: Cut = _whole if self.wide else english()
        self._stop = {word: 1 << (FIRST_STOP + place) for place, word in enumerate(STOP_WORDS["zh" if self.wide else "en"])}
        self._forget()

    def _forget(self) -> None:
        self._keys, self._values, self._known = np.zeros(1 << 16, np.uint64), np.zeros(1 << 16, np.int64), 0
        self._seen: dict[str, int] = {}
        self.first = Column(np.int64, 0)  # run r has the words words[first[r] : first[r + 1]]
        self.words = Column(np.int64)
        # Of each word: a hash, the polynomial of its bytes, the base to the power of their number, the inverse of that.
        self.hashes, self.polynomials, self.powers, self.inverses = (Column(np.uint64) for _ in range(4))
        self.lengths, self.letters, self.flags = (Column(np.int64) for _ in range(3))

    def runs(self, data: Array, offsets: Array) -> tuple[Array, Array, Array]:
        """Numbers of the runs of N texts: run int64 [R], gap uint8 [R], first int64 [N + 1].

        `data` uint8 [bytes], offsets int64 [N + 1]: text n is data[offsets[n] : offsets[n + 1]], its runs are
        run[first[n] : first[n + 1]]. `gap` is BROKEN where a line feed stands before a run, WIDE where other white space does
        that is more than one blank, else 0.
        """
        if self._known > REMEMBERED:
            self._forget()
        share = 1 if self.wide else 2  # bytes that a run takes at least
        size = int(offsets[-1] - offsets[0]) // share + len(offsets)
        run, gap, first = np.empty(size, np.int64), np.empty(size, np.uint8), np.zeros(len(offsets), np.int64)
        new = np.empty((size, 2), np.int64)
        text = found = 0
        while text < len(offsets) - 1:
            room = 2 * (self._known + int(offsets[text + 1] - offsets[text]) // share + 1)
            if room > len(self._keys):
                self._widen(room)
            text, fresh = _number(
                data, offsets, text, self._keys, self._values, self._known, self.wide, run, gap, first, new[found:]
            )
            self._known += fresh
            found += fresh
        if found:
            self._learn([data[start:end].tobytes().decode() for start, end in new[:found].tolist()])
        return run[: first[-1]], gap[: first[-1]], first

    def _widen(self, room: int) -> None:
        size = len(self._keys)
        while size < room:
            size *= 2
        keys, values = np.zeros(size, np.uint64), np.zeros(size, np.int64)
        _move(self._keys, self._values, keys, values)
        self._keys, self._values = keys, values

    def _learn(self, runs: list[str]) -> None:
        """Cuts runs that were not met before, and counts what is asked of their words."""
        words: list[int] = []
        first: list[int] = []
        rows: list[tuple[int, ...]] = []
        start = len(self.words.values)
        for run in runs:
            for word in self._cut(run):
                number = self._seen.get(word)
                if number is None:
                    number = self._seen[word] = len(self._seen)
                    rows.append(self._row(word))
                words.append(number)
            first.append(start + len(words))
        self.first.extend(first)
        self.words.extend(words)
        columns = (self.hashes, self.polynomials, self.powers, self.inverses, self.lengths, self.letters, self.flags)
        for column, values in zip(columns, zip(*rows, strict=True), strict=False):
            column.extend(values)

    def _row(self, word: str) -> tuple[int, ...]:
        data = word.encode()
        polynomial, power = 0, 1
        for byte in data:
            polynomial = (polynomial * _BASE + byte + 1) & _MASK
            power = power * _BASE & _MASK
        letters = len(word) if word.isalpha() else sum(map(str.isalpha, word))
        flags = self._stop.get(word, 0)
        if not SYMBOLS.issuperset(word):
            flags |= VISIBLE
        if letters:
            flags |= ALPHABETIC
        if word in sentence_ends():
            flags |= ENDS_SENTENCE
        if all(unicodedata.category(character)[0] == "P" for character in word):
            flags |= PUNCTUATION
        if _IDEOGRAPH.fullmatch(word):
            flags |= HAN
        elif letters and not _WIDE_CHARACTER.search(word):
            flags |= LATIN
        return xxhash.xxh3_64_intdigest(data), polynomial, power, pow(power, -1, 1 << 64), len(word), letters, flags


@njit(cache=True)
def _is_wide(point):  # type: ignore[no-untyped-def]
    """Kana, ideographs, hangul: all of three bytes."""
    return 0x3040 <= point <= 0x30FF or 0x3400 <= point <= 0x9FFF or 0xAC00 <= point <= 0xD7AF


@njit(cache=True)
def _number(data, offsets, text, keys, values, known, wide, run, gap, first, new):  # type: ignore[no-untyped-def]
    """Numbers the runs of texts from `text` on until the table may overflow: (the next text, how many runs were new)."""
    mask = uint64(len(keys) - 1)
    fresh, count = 0, first[text]
    while text < len(offsets) - 1:
        i, end = offsets[text], offsets[text + 1]
        if 2 * (known + fresh + (end - i) // (1 if wide else 2) + 1) > len(keys):
            break
        while i < end:
            begin = i
            before = 0
            while i < end:
                width = space(data, i, end)
                if width == 0:
                    break
                if data[i] == 10:
                    before = BROKEN
                elif before == 0 and (i > begin or data[i] != 32):
                    before = WIDE
                i += width
            if i == end:
                break
            begin = i
            hash_ = uint64(0)
            while i < end:
                c = data[i]
                if (c <= 32 or 0xC2 <= c <= 0xE3) and space(data, i, end) > 0:
                    break
                if wide and c >= 0xE3 and _is_wide(code_point(data, i)):
                    if i > begin:
                        break
                    for _ in range(3):
                        hash_ = hash_ * BASE + uint64(data[i]) + uint64(1)
                        i += 1
                    break
                hash_ = hash_ * BASE + uint64(c) + uint64(1)
                i += 1
            hash_ = finish(hash_, i - begin)
            slot = hash_ & mask
            while keys[slot] != uint64(0) and keys[slot] != hash_:
                slot = (slot + uint64(1)) & mask
            if keys[slot] == uint64(0):
                keys[slot], values[slot] = hash_, known + fresh
                new[fresh, 0], new[fresh, 1] = begin, i
                fresh += 1
            run[count], gap[count] = values[slot], before
            count += 1
        text += 1
        first[text] = count
    return text, fresh


@njit(cache=True)
def _move(keys, values, wider, moved):  # type: ignore[no-untyped-def]
    """Into a larger table."""
    mask = uint64(len(wider) - 1)
    for i in range(len(keys)):
        if keys[i] != uint64(0):
            slot = keys[i] & mask
            while wider[slot] != uint64(0):
                slot = (slot + uint64(1)) & mask
            wider[slot], moved[slot] = keys[i], values[i]
