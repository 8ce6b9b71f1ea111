"""Texts of one language against the table: all figures of many texts at once, and the first rule that each breaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ninthsky.data.rules import figures as count
from ninthsky.data.rules.c4 import Cleaned, clean
from ninthsky.data.rules.table import CURLY_BRACKET, LOREM_IPSUM, SENTENCES, SPAM_LINES, Rule
from ninthsky.data.rules.words import WIDE_LANGUAGES, Words, sentence_ends
from ninthsky.data.spam import spam_shares

Array = NDArray[Any]

_BULLETS = {False: "•-", True: "•‣▶◀◦■□▪▫–-*●"}  # Gopher's, as datatrove reads it; our own list in Chinese
_SHORT = {False: 30, True: 12}  # characters of a short line; 12 Chinese ones hold about as many words
_ENDS = "”’…」』；：:\"'"  # with which a Chinese line may end as well


@dataclass(frozen=True)
class Verdict:
    """Figures by their rules' names, rounded to 6 places; the first broken rule; the text, or what C4 left of it."""

    figures: dict[str, float]
    broken: Rule | None
    text: str


def buffers(texts: Sequence[str] | pa.Array) -> tuple[Array, Array]:
    """The bytes and offsets of N texts, of Arrow's own buffers: uint8 [bytes], int64 [N + 1]."""
    array = texts if isinstance(texts, pa.Array) else pa.array(texts, pa.large_string())
    if not pa.types.is_large_string(array.type):
        array = array.cast(pa.large_string())
    _, offsets, data = array.buffers()
    bounds = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    return np.frombuffer(data or b"", np.uint8), bounds


class Counter:
    """Counts the figures of texts of one language; remembers its words, and keeps its scratch."""

    def __init__(self, language: str) -> None:
        self.words = Words(language)
        self.wide = language in WIDE_LANGUAGES
        ends = sentence_ends() | frozenset(_ENDS) if self.wide else sentence_ends()
        self._ends, self._bullets = count.point_set(ends), count.point_set(_BULLETS[self.wide])
        self._room(1024)

    def _room(self, size: int) -> None:
        self._keys, self._marks, self._counts = (
            np.zeros(size, np.uint64),
            np.zeros(size + 1, np.uint64),
            np.zeros(size, np.int64),
        )

    def __call__(self, data: Array, offsets: Array) -> dict[str, Array]:
        """Float64 [N] for each of `figures.FIGURES`."""
        number = len(offsets) - 1
        w = self.words
        run, _, first = w.runs(data, offsets)
        of_words, of_lines, repeated = (
            np.zeros((number, len(names))) for names in (count.WORDS, count.LINES, count.REPETITION)
        )
        at, words, lengths = w.first.values, w.words.values, w.lengths.values
        count.count_words(run, first, at, words, lengths, w.letters.values, w.flags.values, of_words)
        entries = 2 * max(int(of_words[:, 0].max(initial=0)), int(count.newlines(data, offsets))) + 4
        if entries > len(self._keys):
            self._room(1 << (entries - 1).bit_length())
        per_word = np.maximum(of_words[:, count.WORDS.index("spoken_words")], 1.0) if self.wide else of_words[:, 0]
        scratch = self._keys, self._marks
        count.count_lines(data, offsets, per_word, self._ends, self._bullets, _SHORT[self.wide], *scratch, of_lines)
        count.count_repetition(
            data, offsets, run, first, at, words, w.hashes.values, w.polynomials.values, w.powers.values, w.inverses.values,
            lengths, 2 if self.wide else 1, *scratch, self._counts, repeated,
        )  # fmt: skip
        columns = np.concatenate([of_words, of_lines, repeated], axis=1)
        return dict(zip(count.FIGURES, columns.T, strict=True))


class Judge:
    """The table's rules, asked of any number of texts. One per process: what it learns of words serves the next texts."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = rules
        self._counters: dict[bool, Counter] = {}

    def __call__(self, texts: Sequence[str], language: str) -> list[Verdict]:
        """One verdict per text; all texts are in `language`."""
        if not texts:
            return []
        wide = language in WIDE_LANGUAGES
        counter = self._counters.get(wide)
        if counter is None:
            counter = self._counters[wide] = Counter(language)
        data, offsets = buffers(texts)
        rules = [(rule, limit) for rule in self.rules if (limit := rule.threshold(language)) is not None]
        columns = counter(data, offsets)
        columns[SPAM_LINES] = spam_shares(texts)
        columns[LOREM_IPSUM] = np.array([float("lorem ipsum" in text.lower()) for text in texts])
        cleaned: Cleaned | None = None
        if any(rule.figure == SENTENCES for rule, _ in rules):
            # As FineWeb asks it: lines need not end in a mark (that rule alone drops most of the web's good lines).
            cleaned = clean(data, offsets, counter.words, ended=False)
            columns[SENTENCES], columns[CURLY_BRACKET] = cleaned.sentences, cleaned.curly_bracket
        table = np.stack([columns[rule.counted(language)] for rule, _ in rules], axis=1).tolist()
        verdicts = []
        for number, row in enumerate(table):
            broken = next((rule for (rule, limit), figure in zip(rules, row, strict=True) if rule.broken(figure, limit)), None)
            text = texts[number]
            if cleaned is not None and broken is None:
                text = cleaned.data[cleaned.offsets[number] : cleaned.offsets[number + 1]].tobytes().decode().strip()
            verdicts.append(
                Verdict({rule.name: round(figure, 6) for (rule, _), figure in zip(rules, row, strict=True)}, broken, text)
            )
        return verdicts
