"""Quality rules as a table: one row per rule, with its figure, its comparison, and its threshold per language.

English thresholds are the published ones of Gopher (arXiv 2112.11446, appendix A1), C4 (1910.10683) and FineWeb (2406.17557)
where a row names them. Chinese thresholds are our own: those rules count words by spaces, which drops nearly every good page.
What a setting of run.toml names is taken from there.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ninthsky.config.schema import Quality
from ninthsky.data.spam import spam_share

_TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\s\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
_HAN = re.compile(r"[\u3400-\u9fff]")
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_LETTER = re.compile(r"[^\W\d_]")
_LATIN_WORD = re.compile(
    r"[^\s\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]*[^\W\d_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af][^\s\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]*"
)
_TERMINAL = (".", "?", "!", '"', "'", "”", "’", "…", "。", "？", "！", "」", "』", "；", "：", ":")
_BULLETS = ("•", "‣", "▶", "◀", "◦", "■", "□", "▪", "▫", "–", "-", "*", "●")
_ENGLISH_STOP = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))  # Gopher's eight
_CHINESE_STOP = frozenset("的了是在和有不我这他一就也与为中上")


class Text:
    """A document with what several rules need of it, counted once."""

    def __init__(self, text: str, language: str) -> None:
        self.text = text
        self.chinese = language in ("zh", "ja")
        self.tokens: list[str] = _TOKEN.findall(text)
        self.lines = [line for line in (line.strip() for line in text.split("\n")) if line]
        self.han = len(_HAN.findall(text))
        self.latin_words = len(_LATIN_WORD.findall(text)) if self.chinese else len(self.tokens)
        self.words = self.latin_words + 0.6 * self.han if self.chinese else float(len(self.tokens))
        self.ids = _numbered(self.tokens)
        self.lengths = list(map(len, self.tokens))

    def share_of_lines(self, holds: Callable[[str], bool]) -> float:
        return sum(map(holds, self.lines)) / len(self.lines) if self.lines else 0.0


def _numbered(tokens: Sequence[str]) -> list[int]:
    known: dict[str, int] = {}
    return [known.setdefault(token, len(known)) for token in tokens]


def _mean_word_length(t: Text) -> float:
    """Of words in spaced scripts: a CJK character inside an English page is no short word."""
    lengths = [len(token) for token in t.tokens if len(token) > 1 or not _CJK.match(token)]
    return sum(lengths) / len(lengths) if lengths else 0.0


def _symbol_share(t: Text) -> float:
    return (t.text.count("#") + t.text.count("…") + t.text.count("...")) / max(t.words, 1.0)


def _alphabetic_share(t: Text) -> float:
    """Words with a letter over words; for Chinese, letters over visible characters."""
    if t.chinese:
        return len(_LETTER.findall(t.text)) / max(sum(t.lengths), 1)
    return sum(1 for token in t.tokens if _LETTER.search(token)) / max(len(t.tokens), 1)


def _stop_words(t: Text) -> float:
    """How many different function words occur (Chinese: function characters)."""
    if t.chinese:
        return float(len(_CHINESE_STOP.intersection(t.tokens)))
    return float(len(_ENGLISH_STOP.intersection(token.lower() for token in t.tokens)))


def _bullet_lines(t: Text) -> float:
    return t.share_of_lines(lambda line: line.startswith(_BULLETS))


def _duplicate_lines(t: Text) -> float:
    return 1 - len(set(t.lines)) / len(t.lines) if t.lines else 0.0


def _duplicate_line_characters(t: Text) -> float:
    seen: set[str] = set()
    repeated = 0
    for line in t.lines:
        repeated += len(line) if line in seen else 0
        seen.add(line)
    return repeated / max(len(t.text), 1)


def _short_lines(t: Text) -> float:
    """Lines under 30 characters (Chinese: 12, which hold about as many words)."""
    limit = 12 if t.chinese else 30
    return t.share_of_lines(lambda line: len(line) <= limit)


def _newlines_per_word(t: Text) -> float:
    return t.text.count("\n") / max(t.words, 1.0)


def _top_ngram(n: int) -> Callable[[Text], float]:
    """Share of characters in the most frequent n-gram of words (Chinese: of 2n characters)."""

    def figure(t: Text) -> float:
        size = 2 * n if t.chinese else n
        grams = list(zip(*(t.ids[k:] for k in range(size)), strict=False))
        if not grams:
            return 0.0
        counts = Counter(grams)
        most = max(counts.values())
        if most == 1:
            return 0.0
        where = next(index for index, gram in enumerate(grams) if counts[gram] == most)
        return most * sum(t.lengths[where : where + size]) / max(sum(t.lengths), 1)

    return figure


def _repeated_ngrams(n: int) -> Callable[[Text], float]:
    """Share of characters in n-grams that occurred before, overlaps counted once (Chinese: of 2n characters)."""

    def figure(t: Text) -> float:
        size = 2 * n if t.chinese else n
        grams = list(zip(*(t.ids[k:] for k in range(size)), strict=False))
        if len(set(grams)) == len(grams):
            return 0.0
        seen: set[tuple[int, ...]] = set()
        index = repeated = 0
        while index < len(grams):
            if grams[index] in seen:
                repeated += sum(t.lengths[index : index + size])
                index += size
            else:
                seen.add(grams[index])
                index += 1
        return repeated / max(sum(t.lengths), 1)

    return figure


@dataclass(frozen=True)
class Rule:
    """A document is dropped when its figure is below a `min` or above a `max`. No threshold for its language: not applied."""

    name: str
    figure: Callable[[Text], float]
    bound: str  # "min" or "max"
    english: float | None
    chinese: float | None
    source: str

    def threshold(self, language: str) -> float | None:
        return self.chinese if language in ("zh", "ja") else self.english

    def broken(self, figure: float, threshold: float) -> bool:
        return figure < threshold if self.bound == "min" else figure > threshold


def table(q: Quality) -> tuple[Rule, ...]:
    """All rules, in the order in which they are asked; the first that is broken names the reason."""
    grams, repeated = {2: 0.20, 3: 0.18, 4: 0.16}, {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}

    def both(name: str, figure: Callable[[Text], float], bound: str, limit: float, source: str) -> Rule:
        return Rule(name, figure, bound, limit, limit, source)

    def ending(ends: tuple[str, ...]) -> Callable[[Text], float]:
        return lambda t: t.share_of_lines(lambda line: line.endswith(ends))

    return (
        both("min_words", lambda t: t.words, "min", q.min_words, "Gopher (50), set lower"),
        both("max_words", lambda t: t.words, "max", q.max_words, "Gopher"),
        both("spam_lines", lambda t: spam_share(t.lines), "max", 0.30, "own"),
        both("lorem_ipsum", lambda t: float("lorem ipsum" in t.text.lower()), "max", 0.0, "C4"),
        Rule("min_word_length", _mean_word_length, "min", 3.0, None, "Gopher"),
        Rule("max_word_length", _mean_word_length, "max", 10.0, None, "Gopher"),
        both("symbol_share", _symbol_share, "max", q.max_symbol_share, "Gopher"),
        both("bullet_lines", _bullet_lines, "max", q.max_bullet_lines, "Gopher"),
        both("ellipsis_lines", ending(("...", "…")), "max", q.max_ellipsis_lines, "Gopher"),
        Rule("alphabetic_share", _alphabetic_share, "min", 0.80, 0.60, "Gopher; Chinese own"),
        both("stop_words", _stop_words, "min", q.min_stop_words, "Gopher; Chinese: of 17 function characters, own"),
        both("duplicate_lines", _duplicate_lines, "max", q.max_duplicate_lines, "Gopher"),
        both("duplicate_line_characters", _duplicate_line_characters, "max", 0.20, "Gopher"),
        *(both(f"top_{n}_gram", _top_ngram(n), "max", limit, "Gopher; Chinese own") for n, limit in grams.items()),
        *(
            both(f"repeated_{n}_grams", _repeated_ngrams(n), "max", limit, "Gopher; Chinese own")
            for n, limit in repeated.items()
        ),
        both("terminal_lines", ending(_TERMINAL), "min", q.min_terminal_lines, "FineWeb"),
        Rule("short_lines", _short_lines, "max", 0.67, 0.80, "FineWeb; Chinese own"),
        both("newlines_per_word", _newlines_per_word, "max", 0.30, "FineWeb"),
    )


def judge(text: str, language: str, rules: Sequence[Rule]) -> tuple[dict[str, float], Rule | None]:
    """Every rule's figure, and the first rule that is broken. All figures are kept, also past the first broken rule."""
    counted = Text(text, language)
    figures: dict[str, float] = {}
    broken: Rule | None = None
    for rule in rules:
        threshold = rule.threshold(language)
        if threshold is None:
            continue
        figures[rule.name] = figure = round(rule.figure(counted), 6)
        if broken is None and rule.broken(figure, threshold):
            broken = rule
    return figures, broken
