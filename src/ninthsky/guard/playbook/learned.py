"""What was learned from faults that people have analysed: it speaks only where the playbook's rules leave doubt.

An incident is a text with the cause that a person accepted. A new text is compared with all of them by their shared words,
rarer ones counting more (TF-IDF, cosine); the nearest vote. Their say is limited by how near they are: a text unlike all
that is known stays unknown.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ninthsky.errors import UserError
from ninthsky.guard.playbook.book import UNKNOWN, Playbook
from ninthsky.guard.playbook.match import Finding, match

WORD = re.compile(r"[a-z_][a-z_0-9]{2,}|\b\d{2,6}\b")
NEIGHBOURS = 5
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


class Memory:
    """Incidents as vectors. Nothing is trained but the words' weights."""

    def __init__(self, incidents: Sequence[Incident]) -> None:
        self.incidents = list(incidents)
        counts = [_words(incident.text) for incident in self.incidents]
        self.words = {word: number for number, word in enumerate(sorted({word for count in counts for word in count}))}
        seen = Counter(word for count in counts for word in count)
        total = len(self.incidents)
        self.rarity = np.array([np.log((1 + total) / (1 + seen[word])) + 1.0 for word in self.words])
        self.vectors = np.array([self._vector(count) for count in counts]).reshape(total, len(self.words))

    def _vector(self, counts: Counter[str]) -> NDArray[np.float64]:
        vector = np.zeros(len(self.words))
        for word, count in counts.items():
            if word in self.words:
                vector[self.words[word]] = 1.0 + np.log(count)
        vector *= self.rarity
        length = float(np.linalg.norm(vector))
        return vector / length if length else vector

    def votes(self, text: str) -> tuple[dict[str, float], float]:
        """Share of the vote of each cause, and how near the nearest incident is (0 to 1)."""
        if not self.incidents:
            return {}, 0.0
        near = self.vectors @ self._vector(_words(text))
        best = np.argsort(-near, kind="stable")[:NEIGHBOURS]
        votes: defaultdict[str, float] = defaultdict(float)
        for number in best:
            votes[self.incidents[number].cause] += float(near[number]) ** 2
        total = sum(votes.values())
        return ({cause: value / total for cause, value in votes.items()} if total else {}), float(near[best[0]])

    def component(self, cause: str) -> str:
        """The component that incidents of this cause name most often."""
        named = Counter(incident.component for incident in self.incidents if incident.cause == cause and incident.component)
        return named.most_common(1)[0][0] if named else ""


def consult(text: str, book: Playbook, memory: Memory | None = None) -> list[Finding]:
    """The playbook's rules, and what they leave unknown shared out by the memory's votes. Best first; scores sum to 1."""
    found = match(text, book)
    if memory is None:
        return found
    votes, near = memory.votes(text)
    doubt = next(finding.score for finding in found if finding.cause == UNKNOWN)
    scores = {finding.cause: finding for finding in found}
    for cause, share in votes.items():
        if cause == UNKNOWN:
            continue
        said = scores.get(cause)
        component = said.component if said else memory.component(cause) or getattr(book.causes.get(cause), "component", UNKNOWN)
        evidence = (*(said.evidence if said else ()), ("learned", f"{share:.0%} of the vote of the nearest incidents"))
        scores[cause] = Finding(cause, component, (said.score if said else 0.0) + doubt * near * share, evidence)
    scores[UNKNOWN] = Finding(UNKNOWN, UNKNOWN, doubt * (1.0 - near * sum(s for c, s in votes.items() if c != UNKNOWN)))
    return sorted(scores.values(), key=lambda finding: (-finding.score, finding.cause))


@dataclass(frozen=True)
class Draft:
    """Incidents that no rule explains and that are alike: a class of faults for a person to name."""

    incidents: tuple[Incident, ...]
    words: tuple[str, ...]  # those that they share and others lack

    def toml(self, name: str) -> str:
        """An entry for a playbook, to be read, changed and accepted by a person."""
        said = ", ".join(f"'{re.escape(word)}'" for word in self.words)
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
    memory = Memory(unexplained)
    near = memory.vectors @ memory.vectors.T
    group = list(range(len(unexplained)))
    for one, other in zip(*np.nonzero(near >= least), strict=True):
        if group[one] != group[other]:
            old = group[other]
            group = [group[one] if value == old else value for value in group]
    found = []
    for value in dict.fromkeys(group):
        members = [number for number, own in enumerate(group) if own == value]
        if len(members) > 1:
            shared = memory.vectors[members].min(axis=0)
            names = list(memory.words)
            words = tuple(names[number] for number in np.argsort(-shared, kind="stable")[:5] if shared[number] > 0)
            found.append(Draft(tuple(unexplained[number] for number in members), words))
    return found


def _words(text: str) -> Counter[str]:
    words = WORD.findall(text.lower())
    return Counter(words) + Counter(f"{one} {other}" for one, other in itertools.pairwise(words))
