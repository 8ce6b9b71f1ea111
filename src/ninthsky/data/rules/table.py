"""The rules: one row each, with its figure, its bound, and its threshold per language.

English thresholds are the published ones of Gopher (arXiv 2112.11446, appendix A1), C4 (1910.10683), FineWeb (2406.17557) and
FineWeb-2 (2506.20920) where a row names them; docs/decisions/0006 says where datatrove's defaults are others. Chinese
thresholds are our own: those rules count words by spaces, which drops nearly every good page. What a setting of run.toml names
is taken from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ninthsky.config.schema import Quality
from ninthsky.data.rules.figures import REPEATED, TOP
from ninthsky.data.rules.words import WIDE_LANGUAGES

SPAM_LINES, LOREM_IPSUM, SENTENCES, CURLY_BRACKET = "spam_lines", "lorem_ipsum", "sentences", "curly_bracket"


@dataclass(frozen=True)
class Rule:
    """A document is dropped when its figure is below a `min` or above a `max`. No threshold for its language: not applied.

    `figure` names what is counted: one of `rules.figures.FIGURES`, or of the four names above; in Chinese `chinese_figure`
    where that is another.
    """

    name: str
    figure: str
    bound: Literal["min", "max"]
    english: float | None
    chinese: float | None
    source: str
    chinese_figure: str = ""

    def threshold(self, language: str) -> float | None:
        return self.chinese if language in WIDE_LANGUAGES else self.english

    def counted(self, language: str) -> str:
        """The name of its figure in a language."""
        return self.chinese_figure or self.figure if language in WIDE_LANGUAGES else self.figure

    def broken(self, figure: float, threshold: float) -> bool:
        return figure < threshold if self.bound == "min" else figure > threshold


def table(q: Quality) -> tuple[Rule, ...]:
    """All rules, in the order in which they are asked; the first that is broken names the reason."""

    def most(name: str, limit: float, source: str, chinese: float | None = None) -> Rule:
        return Rule(name, name, "max", limit, limit if chinese is None else chinese, source)

    c4 = (
        Rule("c4_curly_bracket", CURLY_BRACKET, "max", 0.0, None, "C4"),
        Rule("c4_sentences", SENTENCES, "min", 5.0, None, "C4, of the lines that it leaves"),
    )
    return (
        Rule("min_words", "visible_words", "min", q.min_words, q.min_words, "Gopher (50), set lower", "spoken_words"),
        Rule("max_words", "visible_words", "max", q.max_words, q.max_words, "Gopher", "spoken_words"),
        most(SPAM_LINES, 0.30, "own"),
        most(LOREM_IPSUM, 0.0, "C4"),
        Rule("min_word_length", "word_length", "min", 3.0, None, "Gopher"),
        Rule("max_word_length", "word_length", "max", 10.0, None, "Gopher"),
        most("hash_share", q.max_symbol_share, "Gopher"),
        most("ellipsis_share", q.max_symbol_share, "Gopher"),
        most("bullet_lines", q.max_bullet_lines, "Gopher"),
        most("ellipsis_lines", q.max_ellipsis_lines, "Gopher"),
        Rule("alphabetic_share", "alphabetic_runs", "min", 0.80, 0.60, "Gopher; Chinese: letters, own", "letter_share"),
        Rule("stop_words", "stop_words", "min", q.min_stop_words, q.min_stop_words, "Gopher; Chinese: of 17 characters, own"),
        most("duplicate_paragraphs", 0.30, "Gopher"),
        most("duplicate_paragraph_characters", 0.20, "Gopher"),
        most("duplicate_lines", q.max_duplicate_lines, "Gopher"),
        most("duplicate_line_characters", 0.20, "Gopher"),
        *(
            most(f"top_{n}_gram", limit, "Gopher; Chinese: of 2n characters, own")
            for n, limit in zip(TOP, (0.20, 0.18, 0.16), strict=True)
        ),
        *(most(f"repeated_{n}_grams", 0.20 - n / 100, "Gopher; Chinese: of 2n characters, own") for n in REPEATED),
        Rule("terminal_lines", "terminal_lines", "min", q.min_terminal_lines, q.min_terminal_lines, "FineWeb"),
        most("short_lines", 0.67, "FineWeb; Chinese own", chinese=0.80),
        Rule("repeated_line_characters", "repeated_line_characters", "max", q.max_repeated_line_characters, None, "FineWeb-2"),
        most("newlines_per_word", 0.30, "FineWeb"),
        *(c4 if q.c4 else ()),
    )
