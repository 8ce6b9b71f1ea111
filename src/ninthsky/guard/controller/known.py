"""What the last words of a process say of its cause, where the playbook knows them so well that its ladder binds."""

from __future__ import annotations

from dataclasses import dataclass

from ninthsky.evidence import Fact
from ninthsky.guard.playbook.book import UNKNOWN, shipped
from ninthsky.guard.playbook.match import match

SURE = 0.8  # score from which a cause found in a log binds: below, another card is tried first
LINES = 20  # of the end of a log


@dataclass(frozen=True)
class Known:
    """A cause of the playbook. `ladder`: rungs that it allows without a person; none for errors of the program, full disks,
    permissions and versions."""

    cause: str
    title: str
    ladder: tuple[str, ...]
    person: str
    words: str
    score: float

    @property
    def fact(self) -> Fact:
        return Fact(f"its last words ({self.cause})", self.words, source=f"playbook, score {self.score:.2f}, at least {SURE}")


def known_cause(tail: str) -> Known | None:
    """From the end of a process's log. None where nothing in it is said strongly enough, or it only tells of a peer's end."""
    book = shipped()
    lines = [line for line in tail.strip().splitlines()[-LINES:] if not book.is_echo(line)]
    best = match("\n".join(lines), book)[0]
    if best.cause == UNKNOWN or best.score < SURE:
        return None
    cause, words = book.causes[best.cause], best.evidence[0][1]
    said = next((line.strip() for line in reversed(lines) if words in line), words)
    return Known(cause.name, cause.title, cause.ladder, cause.person, said[:200], best.score)
