"""Text of a fault -> its likely causes, each with the words that gave it away; `unknown` is always among them."""

from __future__ import annotations

from dataclasses import dataclass

from ninthsky.guard.playbook.book import UNKNOWN, Cause, Pattern, Playbook

LONGEST = 20_000  # characters of an excerpt that are looked at: a pattern's time grows with the text
BEHIND = 0.35  # what is left of a cause's evidence where another one that lies behind it was found as clearly
CLEAR = 0.8  # evidence from which a cause counts as clearly found
DEAF = 0.10  # evidence that something else may be there that no pattern knows


@dataclass(frozen=True)
class Finding:
    """One possible cause. Scores of all findings of a text, `unknown` included, sum to 1."""

    cause: str
    component: str
    score: float
    evidence: tuple[tuple[str, str], ...] = ()  # (strength, the words found)


def match(text: str, book: Playbook) -> list[Finding]:
    """Best first. A cause's evidence is 1 - product of (1 - weight) over the patterns found, and shares the whole with the
    other causes' and with what nobody knows."""
    weights = weigh(text, book)
    # Odds, not shares: a cause that is nearly sure takes nearly all, whatever else is faintly said.
    odds = {name: weight.evidence / (1.0 - weight.evidence) for name, weight in weights.items()}
    unknown = DEAF / (1.0 - DEAF) + _doubt(weights)
    total = sum(odds.values()) + unknown
    findings = [
        Finding(name, book.causes[name].component_of(text), odds[name] / total, weight.words)
        for name, weight in weights.items()
    ]
    findings.append(Finding(UNKNOWN, UNKNOWN, unknown / total))
    return sorted(findings, key=lambda finding: (-finding.score, finding.cause))


@dataclass(frozen=True)
class Weight:
    """What the patterns say for one cause: `evidence` from 0 to 1, and the words found, by the pattern's strength."""

    evidence: float
    words: tuple[tuple[str, str], ...]


def weigh(text: str, book: Playbook) -> dict[str, Weight]:
    """The causes that a pattern speaks for. Advice is looked past, and so is what comes after the first 20,000 characters."""
    found = _found(book.read(text[:LONGEST]), book)
    evidence = _ordered(found, book)
    return {name: Weight(evidence[name], tuple((p.strength, words) for p, words in hits)) for name, hits in found.items()}


def _found(text: str, book: Playbook) -> dict[str, list[tuple[Pattern, str]]]:
    return {cause.name: hits for cause in book.causes.values() if (hits := _hits(cause, text))}


def _ordered(found: dict[str, list[tuple[Pattern, str]]], book: Playbook) -> dict[str, float]:
    """Each cause's evidence, less where another one that was found as clearly lies before it."""
    evidence = {name: _together(hits) for name, hits in found.items()}
    for name in sorted(found, key=evidence.__getitem__, reverse=True):
        for behind in book.causes[name].over:
            if behind in evidence and evidence[name] >= min(CLEAR, evidence[behind]):
                evidence[behind] *= BEHIND
    return evidence


def _hits(cause: Cause, text: str) -> list[tuple[Pattern, str]]:
    hits = [(pattern, said[0].strip()[:160]) for pattern in cause.patterns if (said := pattern.says.search(text))]
    if hits and any(pattern.search(text) for pattern in cause.excluded):
        return []
    return hits


def _together(hits: list[tuple[Pattern, str]]) -> float:
    """Patterns that found overlapping words are one piece of evidence: the strongest of them counts."""
    left = 1.0
    words: list[str] = []
    for pattern, said in sorted(hits, key=lambda hit: -hit[0].weight):
        if any(said.lower() in other or other in said.lower() for other in words):
            continue
        words.append(said.lower())
        left *= 1.0 - pattern.weight
    return 1.0 - max(left, 0.004)


def _doubt(weights: dict[str, Weight]) -> float:
    """Where nothing was said strongly, nobody knows."""
    best = max((weight.evidence for weight in weights.values()), default=0.0)
    return max(0.0, 1.5 * (0.7 - best))
