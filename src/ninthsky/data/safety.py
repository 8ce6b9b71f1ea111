"""Hooks for what a house must not train on: lists of addresses and of terms, its own classifier. Each drop has a reason."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Protocol

import fsspec

from ninthsky.config.schema import Safety
from ninthsky.errors import UserError

_TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
_ADDRESS = re.compile(r"(?:^|#)(?:[a-z][a-z0-9+.-]*:)?//(?:[^/?#@]*@)?([^/?#:]+)(?::\d+)?([^?#]*)", re.I)

# (texts, their language) -> a figure in [0, 1] for each, the higher the worse.
Classifier = Callable[[list[str], str], Sequence[float]]


class Asked(Protocol):
    """What is asked of a document."""

    text: str
    language: str
    figures: dict[str, float]


@dataclass(frozen=True)
class Objection:
    """A rule that a document breaks: its figure, what the figure may be at most, and what was found."""

    rule: str
    figure: float
    threshold: float
    detail: str


@functools.lru_cache(maxsize=1)
def hooks(safety: Safety) -> Hooks:
    """Opened once per process."""
    return Hooks(safety)


class Hooks:
    """What `[data.safety]` names.

    Raises UserError N9-DATA-004 where a list cannot be read or the classifier cannot be imported.
    """

    def __init__(self, safety: Safety) -> None:
        self._safety = safety
        self._blocked = {_address(line): name for name in safety.block_lists for line in _lines(name)}
        self._terms: dict[str, list[tuple[str, ...]]] = {}
        for name in safety.lexicons:
            for line in _lines(name):
                if words := tuple(_TOKEN.findall(line.lower())):
                    self._terms.setdefault(words[0], []).append(words)
        for terms in self._terms.values():
            terms.sort(key=len, reverse=True)  # the longest term that stands there counts
        self._classifier = _classifier(safety.classifier) if safety.classifier else None

    def address(self, path: str) -> Objection | None:
        """Whether the page's address is on a block list: its host, a domain above it, or a folder that the list names."""
        found = _ADDRESS.search(path)
        if not self._blocked or found is None:
            return None
        host, folder = found[1].lower().rstrip("."), PurePosixPath(found[2] or "/")
        domains = host.split(".")
        names = [".".join(domains[at:]) for at in range(len(domains))]
        entries = [f"{name}{'' if str(place) == '/' else place}" for name in names for place in (folder, *folder.parents)]
        for entry in entries:
            if entry in self._blocked:
                return Objection("block_list", 1.0, 0.0, f"{entry} is on {self._blocked[entry]}")
        return None

    def texts(self, documents: Sequence[Asked], language: str) -> list[Objection | None]:
        """Lexicon and classifier on documents of one language. Their figures are put beside each document.

        Raises ValueError where the classifier gives another number of figures than it was given texts.
        """
        found: list[Objection | None] = [None] * len(documents)
        if self._terms:
            for at, document in enumerate(documents):
                share, worst = self._lexicon(document.text)
                document.figures["lexicon_share"] = round(share, 6)
                if share > self._safety.max_lexicon_share:
                    detail = f"most often {worst!r}"
                    found[at] = Objection("lexicon_share", share, self._safety.max_lexicon_share, detail)
        if self._classifier is not None and documents:
            figures = [float(figure) for figure in self._classifier([document.text for document in documents], language)]
            if len(figures) != len(documents):
                raise ValueError(f"{self._safety.classifier} gave {len(figures)} figures for {len(documents)} texts")
            for at, (document, figure) in enumerate(zip(documents, figures, strict=True)):
                document.figures["classifier"] = round(figure, 6)
                if found[at] is None and figure > self._safety.max_classifier:
                    found[at] = Objection("classifier", figure, self._safety.max_classifier, self._safety.classifier or "")
        return found

    def _lexicon(self, text: str) -> tuple[float, str]:
        """Share of the words (CJK: characters) that belong to terms, and the term that covers most of them."""
        tokens = _TOKEN.findall(text.lower())
        covered: dict[tuple[str, ...], int] = {}
        at = 0
        while at < len(tokens):
            term = next((t for t in self._terms.get(tokens[at], ()) if tuple(tokens[at : at + len(t)]) == t), None)
            if term is not None:
                covered[term] = covered.get(term, 0) + len(term)
            at += len(term) if term else 1
        if not covered:
            return 0.0, ""
        worst = max(covered, key=lambda term: (covered[term], term))
        joined = ("" if all(_cjk(word) for word in worst) else " ").join(worst)
        return sum(covered.values()) / len(tokens), joined


def _cjk(word: str) -> bool:
    return len(word) == 1 and word >= "\u3040"


def _lines(name: str) -> list[str]:
    """Lines of a text file, at a path or URL, packed or not; what follows `#` is a comment."""
    try:
        with fsspec.open(name, "rt", encoding="utf-8-sig", compression="infer") as file:
            lines = [line.partition("#")[0].strip() for line in file]
    except (OSError, ValueError, ImportError) as error:
        raise UserError("N9-DATA-004", f"the list cannot be read: {error}", name, "one entry a line, in UTF-8") from error
    return [line for line in lines if line]


def _address(line: str) -> str:
    """`https://Example.org/ads/` and `example.org/ads` are the same entry."""
    host, _, folder = re.sub(r"^[a-z][a-z0-9+.-]*://", "", line, flags=re.I).partition("/")
    folder = folder.strip("/")
    return f"{host.lower().rstrip('.')}/{folder}" if folder else host.lower().rstrip(".")


def _classifier(named: str) -> Classifier:
    module, _, name = named.partition(":")
    try:
        found: Classifier = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            "N9-DATA-004", f"the classifier cannot be imported: {error}", f"[data.safety] classifier = {named!r}",
            "module:function, of (texts, language) -> one figure in [0, 1] a text; on PYTHONPATH of every worker",
        ) from error  # fmt: skip
    return found
