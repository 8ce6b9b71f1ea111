"""One raw page to one document, or to the reason why it is none: reading, extraction, language, quality rules."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field

from ninthsky.config.schema import Data
from ninthsky.data.blocks import Page, decode, parse
from ninthsky.data.features import figures
from ninthsky.data.formats import Raw
from ninthsky.data.language import UNKNOWN, detect, share
from ninthsky.data.rules.judge import Judge
from ninthsky.data.rules.table import table
from ninthsky.data.safety import hooks
from ninthsky.data.score import best_run, spans, weights
from ninthsky.run.executor import Clock

# The steps of the funnel, in order. Each drop names one of them.
READING, EXTRACTION, LANGUAGE, QUALITY, SAFETY, EVALUATION, EXACT, NEAR, REPEATS = (
    "reading",
    "extraction",
    "language",
    "quality",
    "safety",
    "evaluation sets",
    "exact duplicate",
    "near duplicate",
    "repeated blocks",
)
STEPS = (READING, EXTRACTION, LANGUAGE, QUALITY, SAFETY, EVALUATION, EXACT, NEAR, REPEATS)
_MIXED = 0.6  # share of the text in its own language, at least; own threshold
_LICENCE = re.compile(r"<(?:a|link)\s[^>]{0,500}?\brel\s*=\s*(?:\"[^\">]*|'[^'>]*)?\blicense\b[^>]{0,500}>", re.I)
_HREF = re.compile(r"\bhref\s*=\s*[\"']?([^\"'\s>]+)", re.I)
_ROBOTS = re.compile(r"<meta\s[^>]{0,200}?\bname\s*=\s*[\"']?robots\b[^>]{0,300}>", re.I)
_CONTENT = re.compile(r"\bcontent\s*=\s*[\"']?([^\"'>]+)", re.I)
_REPEATED = 20  # characters from which on a block is kept once on a page; shorter lines may be said again
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
    licence: str = ""
    robots: str = ""  # what the page, or its server, says to robots
    spans: list[tuple[int, int]] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    drop: Drop | None = None


class Extractor:
    """Settings and rule table, made once per process and used for every page: each page alone, then the rules for many."""

    def __init__(self, data: Data) -> None:
        self.data = data
        self._judge = Judge(table(data.quality))
        self._safety = hooks(data.safety)

    def __call__(self, raw: Raw) -> Document:
        """Reading, extraction, language. Never raises on account of the page's bytes; what cannot be used is dropped with its
        reason."""
        document = Document(licence=raw.licence, robots=raw.robots)
        objection = self._safety.address(raw.path)
        document.drop = Drop(SAFETY, *astuple(objection)) if objection else self._read(raw, document)
        return document

    def judge(self, documents: Sequence[Document]) -> None:
        """The quality rules, then the house's own hooks, for all documents that are not dropped yet: figures, and the reason
        where a rule is broken."""
        for language in self.data.languages:
            left = [document for document in documents if document.drop is None and document.language == language]
            for document, verdict in zip(left, self._judge([one.text for one in left], language), strict=True):
                document.figures.update(verdict.figures)
                document.text = verdict.text
                if (rule := verdict.broken) is not None:
                    document.drop = Drop(
                        QUALITY, rule.name, verdict.figures[rule.name], rule.threshold(language), f"rule of {rule.source}"
                    )
            left = [document for document in left if document.drop is None]
            for document, objection in zip(left, self._safety.texts(left, language), strict=True):
                document.drop = Drop(SAFETY, *astuple(objection)) if objection else None

    def _read(self, raw: Raw, document: Document) -> Drop | None:
        size = len(raw.data)
        if raw.trouble:
            return Drop(READING, "damaged", size, None, raw.trouble)
        if size > self.data.page_bytes:
            return Drop(READING, "page_bytes", size, self.data.page_bytes, "larger than a page may be")
        if not raw.data.strip():
            return Drop(READING, "empty", size, 1, "no bytes but white space")
        text, document.encoding = decode(raw.data)
        unreadable = (text.count("\ufffd") + text.count("\0")) / len(text)
        if unreadable > _UNREADABLE:
            return Drop(READING, "undecodable", unreadable, _UNREADABLE, f"read as {document.encoding}")
        drop = self._article(text, document) if raw.kind == "html" else self._lines(text, document)
        return drop or self._language(document)

    def _article(self, text: str, document: Document) -> Drop | None:
        """The runs of blocks of a page that are its article."""
        document.licence = document.licence or stated_licence(text)
        document.robots = document.robots or stated_robots(text)
        page = parse(text)
        document.figures.update(blocks=len(page), depth=page.depth)
        if not len(page):
            return Drop(EXTRACTION, "no_text", 0, 1, "no text between the tags")
        x, size = figures(page)
        fitted = weights()
        scores = fitted.score(x)
        document.spans = said_once(page, spans(scores, size, fitted.switch))
        kept = [text for first, last in document.spans for text in page.texts(first, last)]
        document.text = "\n".join(kept)
        kept_share = sum(map(len, kept)) / page.characters
        document.figures.update(kept_share=round(kept_share, 6), kept_blocks=len(kept), best_score=float(scores.max()))
        if not kept:
            best = best_run(scores, size)
            return Drop(
                EXTRACTION, "no_article", round(best, 4), fitted.switch, "no run of blocks scores as an article: all shell"
            )
        return None

    def _lines(self, text: str, document: Document) -> Drop | None:
        """A text that somebody extracted before: all of its lines."""
        lines = [line for line in map(str.strip, text.replace("\0", "").splitlines()) if line]
        document.text, document.spans = "\n".join(lines), [(0, len(lines))]
        document.figures.update(blocks=len(lines), kept_share=1.0, kept_blocks=len(lines))
        return None if lines else Drop(EXTRACTION, "no_text", 0, 1, "no line that is not blank")

    def _language(self, document: Document) -> Drop | None:
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


def said_once(page: Page, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The spans without blocks that stood before on the same page: a page repeats its furniture, an article seldom a line."""
    seen: set[str] = set()
    once: list[tuple[int, int]] = []
    for first, last in spans:
        for index, text in enumerate(page.texts(first, last), first):
            if len(text) < _REPEATED or text not in seen:
                seen.add(text)
                if once and once[-1][1] == index and index > first:
                    once[-1] = (once[-1][0], index + 1)
                else:
                    once.append((index, index + 1))
    return once


def stated_licence(html: str) -> str:
    """The address that a page's first `rel="license"` link names; empty where there is none."""
    for tag in _LICENCE.finditer(html):
        if (address := _HREF.search(tag[0])) is not None:
            return address[1].strip()
    return ""


def stated_robots(html: str) -> str:
    """What a page's `<meta name="robots">` says; empty where there is none."""
    tag = _ROBOTS.search(html)
    said = _CONTENT.search(tag[0]) if tag else None
    return said[1].strip() if said else ""


def documents_of(extractor: Extractor, pages: Sequence[Raw], skip: dict[int, str], clock: Clock) -> list[Document]:
    """One document per page of a shard, judged; pages in `skip` ran over their time. `clock` as the executor wants it."""
    documents = []
    limit = extractor.data.page_seconds
    for index, page in enumerate(pages):
        if index in skip:
            documents.append(Document(drop=Drop(READING, "page_seconds", limit, limit, skip[index])))
        else:
            clock(index)
            documents.append(extractor(page))
    clock(-1)
    extractor.judge(documents)
    return documents
