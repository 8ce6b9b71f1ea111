"""The learned part: which cause a text's words speak for, by phrases of every cause (naive Bayes over words and pairs).

Patterns are exact and know only what somebody wrote a pattern for; a person at three in the morning writes "/tmp is used up".
The phrases (`phrases.toml`) were written for this project; beside them stand incidents from public threads whose cause the
thread tells (`analysed.jsonl`, each with its address), and one's own may be added. An example is a vector of its words and
neighbouring pairs of words, log-counted, rarer ones heavier (TF-IDF), of length 1; a cause's likelihood is multinomial over
the sum of its examples' vectors, brought to the same weight for all causes. `unknown`
is one of them: the words of logs while all is well. A text of words that nobody has seen leans to it by as much as is unseen.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from ninthsky.guard.playbook.book import UNKNOWN
from ninthsky.guard.playbook.plain import plain

WORD = re.compile(r"[a-z]+|\d{2,6}")
_MASK = re.compile(r"0x[0-9a-f]+|\b[0-9a-f]{8,}\b")
_SNAKE = re.compile(r"(?<=[a-z])_(?=[a-z])")
MASS = 60.0  # every cause's phrases weigh as much as this many, however many it has
SMOOTH = 0.03  # added to each word's weight in each cause
LEAN = 3.5  # natural log by which a text wholly of unseen words leans to `unknown`: the number of causes, about
TOLD = 4  # words shown as evidence


def split(text: str) -> list[str]:
    """Lower-case words and numbers of two to six digits; addresses and hashes are left out."""
    return WORD.findall(_SNAKE.sub(" ", _MASK.sub(" ", text.lower())))


def features(text: str) -> Counter[str]:
    """Words and pairs of neighbours, counted."""
    words = split(text)
    return Counter(words) + Counter(f"{one} {other}" for one, other in itertools.pairwise(words))


class Vocabulary:
    """The features of some texts, and how rare each is."""

    def __init__(self, counts: Sequence[Counter[str]]) -> None:
        seen = Counter(word for count in counts for word in count)
        self.names = sorted(seen)
        self.index = {word: number for number, word in enumerate(self.names)}
        self.rarity = np.array([np.log((1 + len(counts)) / (1 + seen[word])) + 1.0 for word in self.index])

    def sparse(self, counts: Counter[str]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """A text as (features' numbers, weights), of length 1; empty where no feature is known."""
        known = [(self.index[word], 1.0 + np.log(count)) for word, count in counts.items() if word in self.index]
        numbers = np.array([number for number, _ in known], dtype=np.int64)
        weights = np.array([weight for _, weight in known]) * self.rarity[numbers] if known else np.zeros(0)
        return numbers, weights / float(np.linalg.norm(weights)) if known else weights


class Words:
    """Causes by their words."""

    def __init__(self, examples: Iterable[tuple[str, str]]) -> None:
        """`examples`: (text, cause)."""
        known = [(features(plain(text)), cause) for text, cause in examples]
        self.causes = sorted({cause for _, cause in known} | {UNKNOWN})
        self.vocabulary = Vocabulary([counts for counts, _ in known])
        number_of = {cause: number for number, cause in enumerate(self.causes)}
        sums = np.zeros((len(self.causes), len(self.vocabulary.index)))
        for counts, cause in known:
            numbers, weights = self.vocabulary.sparse(counts)
            sums[number_of[cause], numbers] += weights
        sums = sums * MASS / np.maximum(sums.sum(axis=1, keepdims=True), SMOOTH) + SMOOTH
        self.logs = np.log(sums / sums.sum(axis=1, keepdims=True))

    def likelihoods(self, text: str) -> dict[str, float]:
        """Natural logs, comparable with each other only."""
        numbers, weights = self.vocabulary.sparse(features(text))
        logs = self.logs[:, numbers] @ weights
        logs[self.causes.index(UNKNOWN)] += LEAN * (1.0 - self.seen(text))
        return dict(zip(self.causes, logs.tolist(), strict=True))

    def seen(self, text: str) -> float:
        """The share of the text's words, numbers aside, that some phrase has. 0 where there is none."""
        words = [word for word in split(text) if word.isalpha()]
        return sum(word in self.vocabulary.index for word in words) / len(words) if words else 0.0

    def telling(self, text: str, cause: str) -> str:
        """The words that speak most for a cause against the others."""
        numbers, weights = self.vocabulary.sparse(features(text))
        if cause not in self.causes or not len(numbers):
            return ""
        gain = (self.logs[self.causes.index(cause), numbers] - self.logs[:, numbers].mean(axis=0)) * weights
        return ", ".join(self.vocabulary.names[numbers[at]] for at in np.argsort(-gain)[:TOLD] if gain[at] > 0)


def phrases() -> list[tuple[str, str]]:
    """(phrase, cause) of this release."""
    tree = tomllib.loads(resources.files(__package__).joinpath("phrases.toml").read_text("utf-8"))
    return [(phrase, cause) for cause, told in tree.items() for phrase in told]


def analysed() -> list[tuple[str, str]]:
    """(text, cause) of the incidents that this release has learned from."""
    lines = resources.files(__package__).joinpath("analysed.jsonl").read_text("utf-8").splitlines()
    return [(entry["excerpt"], entry["cause"]) for entry in map(json.loads, lines)]


@functools.cache
def shipped() -> Words:
    """The words of this release's phrases and incidents."""
    return taught([])


def taught(examples: Iterable[tuple[str, str]]) -> Words:
    """What this release knows, and incidents that people have analysed: (text, cause)."""
    return Words([*phrases(), *analysed(), *examples])
