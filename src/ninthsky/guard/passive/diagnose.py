"""What a job left behind -> which line was first, whose it is, what causes it, and which lines are only its echoes."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ninthsky.errors import UserError
from ninthsky.evidence import Evidence, Fact, encode
from ninthsky.guard.passive import exporters, traces
from ninthsky.guard.passive.dumps import Dump, DumpError, is_dump, read_dump
from ninthsky.guard.passive.lines import Line, lines_of, troubled
from ninthsky.guard.playbook.book import UNKNOWN, Playbook
from ninthsky.guard.playbook.learned import consult
from ninthsky.guard.playbook.match import Finding, match
from ninthsky.guard.playbook.words import Words

KEPT = 60  # different lines that the causes are read from
SKEW = 2.0  # seconds that the clocks of two hosts may differ by
FIRST = 4.0  # how much more the first line and those within SKEW of it count: they are read alone, then with the rest
LOOKED_AT = 20  # lines of a file, to tell what it is
INCIDENT = 1 << 20  # characters of an incident's JSON line
TEMPLATES = 50_000  # kinds of line whose judgement is kept, and
SPEAKING = 1_000  # those that speak for a cause: a log of any length is read in bounded memory
SURE = 0.3  # a cause below this is called unknown
STUCK = {  # what the flight recorders say of a rank that others wait for
    "program": "its program does not enter the operation that others are in",
    "device": "its device does not finish what others finished",
    "mismatch": "it entered another operation than the others",
    "missing": "it left no dump, and others wait for it",
}


Kind = Literal["echo", "said", "nothing"]


@dataclass(frozen=True)
class Diagnosis:
    """The answer. `ranks` are those named, worst first; empty where the evidence names none."""

    id: str
    causes: list[Finding]
    ranks: list[int]
    host: str
    first: Line | None
    echoes: int
    evidence: Evidence
    unread: list[str] = field(default_factory=list)

    def tree(self) -> dict[str, Any]:
        """For JSON: causes best first, `unknown` among them."""
        return {
            "id": self.id,
            "causes": _tree(self.causes),
            "ranks": self.ranks,
            "host": self.host,
            "first": None if self.first is None else {"line": self.first.text[:500], "place": self.first.place},
            "echoes": self.echoes,
            "evidence": json.loads(encode(self.evidence)),
            "unread": self.unread,
        }


def _tree(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    return [{"cause": f.cause, "component": f.component, "score": round(f.score, 4)} for f in findings]


# -- single incidents, one JSON line each -----------------------------------------------------------------------------


def is_incidents(path: Path) -> bool:
    """Whether a file holds JSON lines with an `excerpt` each."""
    if path.suffix not in {".jsonl", ".json", ".ndjson"}:
        return False
    try:
        return any(_excerpt(line) is not None for _, line in itertools.islice(lines_of(path, INCIDENT), LOOKED_AT))
    except OSError:
        return False


def incidents(path: Path, book: Playbook, words: Words | None = None) -> Iterator[dict[str, Any]]:
    """{"id", "causes": [{"cause", "component", "score"}, ...]} for each line; {"id", "error"} where a line is none."""
    for number, raw in lines_of(path, INCIDENT):
        if not raw.strip():
            continue
        entry = _excerpt(raw)
        if entry is None:
            yield {"id": f"line {number}", "error": "no JSON object with an excerpt, or longer than a mebibyte"}
        else:
            yield {"id": entry.get("id", f"line {number}"), "causes": _tree(consult(entry["excerpt"], book, words))}


def _excerpt(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("excerpt"), str) else None


# -- what a job left --------------------------------------------------------------------------------------------------


@dataclass
class Heard:
    """Lines of trouble, taken one after another, and what exporters say: from it the cause is read."""

    book: Playbook
    lines: dict[str, Line] = field(default_factory=dict)  # the earliest of each template that speaks for a cause
    echo: Line | None = None  # the first of them
    echoes: int = 0
    alarms: list[exporters.Alarm] = field(default_factory=list)
    _kinds: dict[str, Kind] = field(default_factory=dict)  # a line is judged once for its template

    def take(self, line: Line) -> Kind:
        """What the line is: it speaks for a cause, only tells of a peer's end, or neither."""
        template = line.template
        if len(self._kinds) > TEMPLATES:
            self._kinds.clear()
        kind = self._kinds.get(template) or self._kinds.setdefault(template, _kind(line, self.book))
        if kind == "echo":
            self.echoes += 1
            self.echo = self.echo or line
        elif kind == "said" and _earlier(line, self.lines.get(template)):
            self.lines[template] = line
            if len(self.lines) > SPEAKING:
                self.lines = {line.template: line for line in self._earliest()}
        return kind

    def _earliest(self) -> list[Line]:
        """By time where lines carry one, in the order of the files else; as many as are read."""
        return sorted(self.lines.values(), key=lambda line: (line.time is None, line.time or 0.0))[:KEPT]

    def causes(self, words: Words | None = None) -> tuple[list[Finding], Line | None]:
        """Best first, `unknown` among them; and the first line that speaks for the best one."""
        lines = self._earliest()
        early = [line for line in lines if _near(lines[0], line)] if lines else []
        causes = _causes(early, lines, self.alarms, self.book, words)
        return causes, _first(early, causes[0], self.book)


@dataclass
class _Gathered:
    heard: Heard
    dumps: list[Dump] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    files: int = 0


def diagnose(paths: Iterable[Path], book: Playbook, name: str = "D-0001", words: Words | None = None) -> Diagnosis:
    """Reads logs, flight-recorder dumps and exporters' scrapes below `paths`, as one job's. Raises UserError N9-GRD-021
    where there is nothing to read."""
    gathered = _gather(list(paths), book)
    suspected = traces.suspects(gathered.dumps)
    causes, first = gathered.heard.causes(words)
    ranks = [suspect.rank for suspect in suspected] or ([first.rank] if first is not None and first.rank is not None else [])
    host = (first.host if first is not None else "") or next((alarm.host for alarm in gathered.heard.alarms), "")
    record = _record(name, gathered, causes, ranks, host, first, suspected, book)
    return Diagnosis(name, causes, ranks, host, first, gathered.heard.echoes, record, gathered.unread)


def _gather(paths: list[Path], book: Playbook) -> _Gathered:
    gathered = _Gathered(Heard(book))
    for path in _files(paths):
        gathered.files += 1
        try:
            if is_dump(path):
                gathered.dumps.append(read_dump(path))
            elif exporters.is_scrape(path):
                gathered.heard.alarms += exporters.alarms(path)
            else:
                for line in troubled(path):
                    gathered.heard.take(line)
        except (OSError, DumpError) as error:
            gathered.unread.append(f"{path}: {error}")
    if gathered.files == len(gathered.unread) and not gathered.heard.lines:
        what = gathered.unread[0] if gathered.unread else "no file to read"
        raise UserError("N9-GRD-021", what, ", ".join(map(str, paths)), "n9 guard diagnose FOLDER: logs, dumps, scrapes")
    return gathered


def _files(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        if not path.exists():
            raise UserError("N9-GRD-021", f"no such file or folder: {path}", str(path), "n9 guard diagnose FOLDER")
        if not path.is_dir() and not path.is_file():
            raise UserError("N9-GRD-021", f"no regular file: {path}", str(path), "write it to a file first")
        yield from sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def _kind(line: Line, book: Playbook) -> Kind:
    if book.is_echo(line.text):
        return "echo"
    best = match(line.text, book)[0]
    strong = best.cause != UNKNOWN and any(strength == "strong" for strength, _ in best.evidence)
    return "said" if strong else "nothing"


def _earlier(line: Line, known: Line | None) -> bool:
    return known is None or (line.time is not None and known.time is not None and line.time < known.time)


def _near(first: Line, line: Line) -> bool:
    if first.time is None or line.time is None:
        return first.path == line.path
    return line.time - first.time <= SKEW


def _causes(
    early: list[Line], lines: list[Line], alarms: list[exporters.Alarm], book: Playbook, words: Words | None
) -> list[Finding]:
    """What the first lines say counts more than what came after: the two readings are joined."""
    spoken = [alarm.text for alarm in alarms]
    if not early and not spoken:
        # A device that stops inside a collective, or a program that never enters one, and no word of why.
        return match("", book)
    readings = [(FIRST, "\n".join([line.text for line in early] + spoken)), (1.0, "\n".join(line.text for line in lines))]
    scores: defaultdict[str, float] = defaultdict(float)
    best: dict[str, Finding] = {}
    for weight, text in readings:
        if not text:
            continue
        for finding in consult(text, book, words):
            scores[finding.cause] += weight * finding.score
            best.setdefault(finding.cause, finding)
    total = sum(scores.values())
    joined = [Finding(cause, best[cause].component, score / total, best[cause].evidence) for cause, score in scores.items()]
    return sorted(joined, key=lambda finding: (-finding.score, finding.cause))


def _first(early: list[Line], cause: Finding, book: Playbook) -> Line | None:
    """The earliest line that speaks for the cause that was found; else the earliest at all."""
    known = book.causes.get(cause.cause)
    for line in early:
        if known is not None and any(pattern.says.search(line.text) for pattern in known.patterns):
            return line
    return early[0] if early else None


def _record(
    name: str,
    gathered: _Gathered,
    causes: list[Finding],
    ranks: list[int],
    host: str,
    first: Line | None,
    suspected: list[traces.Suspect],
    book: Playbook,
) -> Evidence:
    best = causes[0] if causes[0].score >= SURE else next(f for f in causes if f.cause == UNKNOWN)
    cause = book.causes.get(best.cause)
    facts = []
    if first is not None:
        facts.append(Fact("first line of trouble", first.text.strip()[:300], source=first.place))
    facts += [Fact(f"{strength} evidence for {best.cause}", words) for strength, words in best.evidence[:5]]
    facts += [alarm.fact for alarm in gathered.heard.alarms[:8]]
    for suspect in suspected[:4]:
        facts.append(Fact(f"rank {suspect.rank}", STUCK[suspect.stuck], source="flight recorders"))
        facts += suspect.facts
    ruled_out = [f"{f.cause}: score {f.score:.2f}" for f in causes[1:4] if f.cause != UNKNOWN and f.score >= 0.02]
    if (at := gathered.heard.echo) is not None:
        ruled_out.insert(
            0, f"{gathered.heard.echoes} lines that only tell of a peer's end, such as {at.text.strip()[:120]!r} ({at.place})"
        )
    where: dict[str, str | int | float] = {"files": gathered.files}
    if host:
        where["host"] = host
    if ranks:
        where["rank"] = ranks[0]
    subject = f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}" if ranks else host or "the job"
    if cause is not None:
        verdict = f"{cause.title} ({best.cause}, look at: {best.component})"
    elif suspected:
        verdict = f"{STUCK[suspected[0].stuck]}; no line tells why (unknown)"
    else:
        verdict = "unknown"
    return Evidence(
        id=name,
        kind="fault",
        subject=subject,
        verdict=verdict,
        facts=tuple(facts),
        ruled_out=tuple(ruled_out),
        remedy=cause.person
        if cause is not None
        else "Nothing here names a cause: keep the files, take stacks (py-spy) while it hangs.",
        confidence=round(best.score, 3) if cause is not None else None,
        decided_by=f"playbook version {book.version}",
        where=where,
    )
