"""What was written around a fault: lines of logs, the kernel's log and exporters, read by the playbook for its cause."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ninthsky.evidence import Fact
from ninthsky.guard.judges.verdict import Verdict
from ninthsky.guard.passive.diagnose import SURE, Heard
from ninthsky.guard.passive.lines import Line
from ninthsky.guard.playbook.book import UNKNOWN, Playbook
from ninthsky.guard.telemetry.note import Note

LINES_SECONDS = 15.0  # so long before a fault: what was said while the job went on for longer is not its cause
NOTES_SECONDS = 120.0  # likewise of the kernel's log and exporters
LINES, NOTES = 2_000, 256  # kept
SAID_NOTES = 4  # beside one fault

# What launchers say of an end, which was seen here itself: it tells how, and not why.
OF_AN_END = re.compile(r"exit ?code ?:? ?-?\d+|Signal \d+ \(SIG\w+\)|ChildFailedError|exited with code", re.IGNORECASE)


@dataclass(frozen=True)
class Reason:
    """What goes into a fault's evidence, and what a person should do where the cause is known."""

    facts: tuple[Fact, ...]
    ruled_out: tuple[str, ...]
    remedy: str


@dataclass
class Reasons:
    """Keeps what was written, with the monotonic seconds at which it was read."""

    book: Playbook
    host: str
    _lines: deque[tuple[float, Line]] = field(default_factory=lambda: deque(maxlen=LINES))
    _notes: deque[tuple[float, Note]] = field(default_factory=lambda: deque(maxlen=NOTES))

    def lines(self, lines: Iterable[Line], now: float) -> None:
        self._lines.extend((now, line) for line in lines)

    def note(self, note: Note, now: float) -> None:
        self._notes.append((now - note.age, note))

    def of(self, verdict: Verdict, cards: Mapping[int, int], now: float) -> Reason:
        """Of a fault that is told now; only words of its rank and card, and those that name none."""
        begun = now - verdict.onset
        heard = Heard(self.book)
        # Nothing that a log says stops a process: somebody did.
        for at, line in self._lines if verdict.cause != "frozen" else ():
            mine = line.rank is None or not verdict.ranks or line.rank in verdict.ranks
            if at >= begun - LINES_SECONDS and mine and not OF_AN_END.search(line.text):
                heard.take(line)
        causes, first = heard.causes()
        facts, ruled_out, remedy = list[Fact](), list[str](), ""
        if first is not None:
            facts.append(Fact("first line of trouble", first.text.strip()[:300], source=first.place))
        if causes[0].cause != UNKNOWN and causes[0].score >= SURE:
            cause = self.book.causes[causes[0].cause]
            text = f"{cause.title} ({cause.name}, look at: {causes[0].component}; score {causes[0].score:.2f})"
            facts.append(Fact("the playbook reads", text, source=f"playbook version {self.book.version}"))
            remedy = cause.person
        if heard.echo is not None:
            said = heard.echo.text.strip()[:120]
            ruled_out.append(f"{heard.echoes} lines that only tell of a peer's end, such as {said!r} ({heard.echo.place})")
        mine_ = [
            note
            for at, note in self._notes
            if at >= begun - NOTES_SECONDS and (note.slot < 0 or not verdict.ranks or note.slot == cards.get(verdict.ranks[0]))
        ]
        for note in sorted(mine_, key=lambda note: note.weight != "hard")[:SAID_NOTES]:
            facts.append(Fact(f"{note.source} says ({note.weight})", note.text, note.limit, source=self.host))
        return Reason(tuple(facts), tuple(ruled_out), remedy)
