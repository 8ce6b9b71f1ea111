"""A text's causes by rules and words together, and what is learned from faults that people have analysed.

An incident is a text with the cause that a person accepted. It teaches the words (`words.py`); where neither rules nor words
explain several that are alike, they become the draft of a new cause.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ninthsky.errors import UserError
from ninthsky.guard.playbook.book import UNKNOWN, Playbook
from ninthsky.guard.playbook.match import LONGEST, Finding, weigh
from ninthsky.guard.playbook.words import Vocabulary, Words, features
from ninthsky.guard.playbook.words import shipped as shipped_words

TRUST = (
    1.5  # how much a rule's evidence weighs beside the words: on incidents that neither was written beside, 1 to 2 are alike
)
SHOWN = 0.05  # score from which a cause's telling words are listed
MEASURED = 5  # a cause with fewer cases than this is shown as unmeasured


@dataclass(frozen=True)
class Incident:
    """A fault that a person has analysed."""

    id: str
    text: str
    cause: str
    component: str = ""


def read_incidents(path: Path) -> list[Incident]:
    """JSON lines with `excerpt` and `cause` (and `id`, `component`). Raises UserError N9-GRD-021 with the first bad line."""
    found = []
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("N9-GRD-021", f"cannot be read: {error}", str(path), "n9 guard learn FILE.jsonl") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            found.append(Incident(str(entry.get("id", number)), entry["excerpt"], entry["cause"], entry.get("component", "")))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"line {number} is no JSON object with `excerpt` and `cause`: {error}"
            raise UserError("N9-GRD-021", what, str(path), "n9 guard learn FILE.jsonl") from error
    if not found:
        raise UserError("N9-GRD-021", "no incident in it", str(path), 'a line reads {"excerpt": "...", "cause": "..."}')
    return found


def consult(text: str, book: Playbook, words: Words | None = None) -> list[Finding]:
    """The playbook's rules and the words' likelihoods together. Best first; scores, `unknown` included, sum to 1.

    A rule's evidence e for a cause counts as the likelihood ratio 1 / (1 - e), `TRUST` times in the logarithm, beside the
    words' likelihood. Words that stand in no cause's phrases, and no rule: unknown.
    """
    words = words or shipped_words()
    text = book.read(text[:LONGEST])
    weights = weigh(text, book)
    logs = {cause: log for cause, log in words.likelihoods(text).items() if cause in book.causes or cause == UNKNOWN}
    least = min(logs.values())
    for cause, weight in weights.items():
        logs[cause] = logs.get(cause, least) - TRUST * math.log(1.0 - weight.evidence)
    if weights:  # normal lines stand in every log: where a rule speaks, they do not say that nobody knows
        doubt = math.log(1.0 - max(weight.evidence for weight in weights.values()))
        logs[UNKNOWN] = logs.get(UNKNOWN, least) + TRUST * doubt
    top = max(logs.values())
    logs = {cause: log - top for cause, log in logs.items()}
    total = sum(math.exp(log) for log in logs.values())
    findings = []
    for cause, log in logs.items():
        score = math.exp(log) / total
        said = weights[cause].words if cause in weights else ()
        if cause != UNKNOWN and score >= SHOWN and (telling := words.telling(text, cause)):
            said = (*said, ("words", telling))
        component = UNKNOWN if cause == UNKNOWN else book.causes[cause].component_of(text)
        findings.append(Finding(cause, component, score, said))
    return sorted(findings, key=lambda finding: (-finding.score, finding.cause))


@dataclass(frozen=True)
class Draft:
    """Incidents that no rule explains and that are alike: a class of faults for a person to name."""

    incidents: tuple[Incident, ...]
    words: tuple[str, ...]  # those that they share and others lack

    def toml(self, name: str) -> str:
        """An entry for a playbook, to be read, changed and accepted by a person."""
        said = ", ".join("'" + r"[\W_]+".join(map(re.escape, word.split())) + "'" for word in self.words)
        lines = [
            f"# from {', '.join(incident.id for incident in self.incidents)}; a person names it, checks and completes it",
            f"[causes.{name}]",
            'title = "not yet named"',
            'kind = "software"',
            'scope = "job"',
            'component = "unknown"',
            "ladder = []",
            'person = "not yet written"',
            f"fair = [{said}]",
        ]
        return "\n".join(lines) + "\n"


def drafts(unexplained: Sequence[Incident], least: float = 0.25) -> list[Draft]:
    """Groups of two or more incidents whose texts are alike (cosine of `least` or more, joined by their nearest members)."""
    counts = [features(incident.text) for incident in unexplained]
    vocabulary = Vocabulary(counts)
    vectors = np.zeros((len(counts), len(vocabulary.index)))
    for row, count in zip(vectors, counts, strict=True):
        numbers, weights = vocabulary.sparse(count)
        row[numbers] = weights
    near = vectors @ vectors.T
    group = list(range(len(unexplained)))
    for one, other in zip(*np.nonzero(near >= least), strict=True):
        if group[one] != group[other]:
            old = group[other]
            group = [group[one] if value == old else value for value in group]
    found = []
    for value in dict.fromkeys(group):
        members = [number for number, own in enumerate(group) if own == value]
        if len(members) > 1:
            shared = vectors[members].min(axis=0)
            words = tuple(vocabulary.names[number] for number in np.argsort(-shared, kind="stable")[:5] if shared[number] > 0)
            found.append(Draft(tuple(unexplained[number] for number in members), words))
    return found
