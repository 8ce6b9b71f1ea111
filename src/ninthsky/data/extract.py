"""One raw page to one document, or to the reason why it is none: reading, extraction, language, quality rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ninthsky.config.schema import Data
from ninthsky.data.blocks import decode, parse
from ninthsky.data.features import units
from ninthsky.data.language import UNKNOWN, detect, share
from ninthsky.data.rules.judge import Judge
from ninthsky.data.rules.table import table
from ninthsky.data.score import best_run, choose, weights

# The steps of the funnel, in order. Each drop names one of them.
READING, EXTRACTION, LANGUAGE, QUALITY, EXACT, NEAR = (
    "reading",
    "extraction",
    "language",
    "quality",
    "exact duplicate",
    "near duplicate",
)
STEPS = (READING, EXTRACTION, LANGUAGE, QUALITY, EXACT, NEAR)
_MIXED = 0.6  # share of the text in its own language, at least; own threshold
_UNREADABLE = 0.02  # share of characters that no encoding explains, at most


@dataclass(frozen=True)
class Drop:
    """Why a page is not in the corpus. `detail` says in words what the figure cannot."""

    stage: str
    rule: str
    figure: float
    threshold: float | None
    detail: str = ""


@dataclass
class Document:
    """What became of a page. `spans` are runs [first, last) of its blocks; `drop` is None where it is kept.

    A page that was dropped keeps the text and figures it had got so far.
    """

    text: str = ""
    language: str = UNKNOWN
    encoding: str = ""
    spans: list[tuple[int, int]] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    drop: Drop | None = None


class Extractor:
    """Settings and rule table, made once per process and used for every page: each page alone, then the rules for many."""

    def __init__(self, data: Data) -> None:
        self.data = data
        self._judge = Judge(table(data.quality))

    def __call__(self, html: bytes) -> Document:
        """Reading, extraction, language. Never raises on account of the page's bytes; what cannot be used is dropped with its
        reason."""
        document = Document()
        document.drop = self._read(html, document)
        return document

    def judge(self, documents: Sequence[Document]) -> None:
        """The quality rules, for all documents that are not dropped yet: figures, and the reason where a rule is broken."""
        for language in self.data.languages:
            left = [document for document in documents if document.drop is None and document.language == language]
            for document, verdict in zip(left, self._judge([one.text for one in left], language), strict=True):
                document.figures.update(verdict.figures)
                document.text = verdict.text
                if (rule := verdict.broken) is not None:
                    document.drop = Drop(
                        QUALITY, rule.name, verdict.figures[rule.name], rule.threshold(language), f"rule of {rule.source}"
                    )

    def _read(self, html: bytes, document: Document) -> Drop | None:
        if len(html) > self.data.page_bytes:
            return Drop(READING, "page_bytes", len(html), self.data.page_bytes, "larger than a page may be")
        if not html.strip():
            return Drop(READING, "empty", len(html), 1, "no bytes but white space")
        text, document.encoding = decode(html)
        unreadable = (text.count("\ufffd") + text.count("\0")) / len(text)
        if unreadable > _UNREADABLE:
            return Drop(READING, "undecodable", unreadable, _UNREADABLE, f"read as {document.encoding}")
        page = parse(text)
        document.figures.update(blocks=len(page.blocks), depth=page.depth)
        if not page.blocks:
            return Drop(EXTRACTION, "no_text", 0, 1, "no text between the tags")
        document.spans, scores = choose(page)
        characters = sum(len(block.text) for block in page.blocks)
        kept = [block for first, last in document.spans for block in page.blocks[first:last]]
        document.text = "\n".join(block.text for block in kept)
        kept_share = sum(len(block.text) for block in kept) / characters
        document.figures.update(kept_share=round(kept_share, 6), kept_blocks=len(kept), best_score=float(scores.max()))
        if not kept:
            best, needed = best_run(scores, units(page)), weights().switch
            return Drop(EXTRACTION, "no_article", round(best, 4), needed, "no run of blocks scores as an article: all shell")
        document.language, cjk = detect(document.text)
        document.figures["cjk_share"] = round(cjk, 6)
        if document.language not in self.data.languages:
            return Drop(
                LANGUAGE, "wanted_languages", 0, 1, f"language {document.language}; wanted: {', '.join(self.data.languages)}"
            )
        own = share(document.text, document.language)
        document.figures["language_share"] = round(own, 6)
        if own < _MIXED:
            return Drop(LANGUAGE, "mixed_languages", own, _MIXED, f"too little of it is {document.language}: partly translated")
        return None
