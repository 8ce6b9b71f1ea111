"""Log files of many ranks and hosts -> the few lines that tell of trouble, each with its time, rank and host."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

LONGEST = 4_000  # characters of a line that are looked at

# Words without which a line tells of no trouble. Everything else, the bulk of any log, is passed over.
TROUBLE = re.compile(
    r"error|err\b|fail|fatal|warn|exception|traceback|kill|time[d -]?out|xid|\baer\b|edac|\bmce\b|denied|refused|no space|lost"
    r"|abort|panic|stuck|hang|hung|\boom\b|out of memory|\bnan\b|cannot|can't|could not|unable|not found|no such|corrupt"
    r"|invalid|mismatch|unreachable|no route|reset|throttl|slowdown|unhealthy|fallen|missing|undefined symbol|already in use"
    r"|not responding|blocked for|quota|overheat|temperature|interrupt|segfault|\b[A-Z]{2}\d{4}\b",
    re.IGNORECASE,
)
CALM = re.compile(r"\b(NCCL INFO|INFO|DEBUG|TRACE)\b|^\s*\[?I\d{4} ")
SERIOUS = re.compile(r"error|fail|fatal|exception|async event|timed? ?out|refused|no route", re.IGNORECASE)

RANK_IN_LINE = re.compile(r"\[rank ?(\d+)\]|\[(?:default)?rank(\d+)\]:|RankID:(\d+)|\brank[ =:](\d+)\b|\[Rank (\d+)\]")
RANK_IN_PATH = re.compile(
    r"rank[_-]?(\d+)|attempt_\d+/(\d+)/std(?:err|out)\.log|(?:^|[/_.-])(?:std(?:err|out)|log|worker|proc)[_.-]?(\d+)(?:\.\w+)?$"
)
HOST_IN_PATH = re.compile(r"((?:node|host|gpu|worker-?node|server)[-_]?\d[\w-]*)", re.IGNORECASE)

_MONTHS = "Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec"
_TIMES: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = (
    (re.compile(r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d)[.,](\d{1,9})"), ("%Y-%m-%d %H:%M:%S",)),
    (re.compile(r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d)()"), ("%Y-%m-%d %H:%M:%S",)),
    (re.compile(r"(\d{4}/\d\d/\d\d \d\d:\d\d:\d\d)()"), ("%Y/%m/%d %H:%M:%S",)),
    (re.compile(rf"\[\w{{3}} ((?:{_MONTHS}) +\d+ \d\d:\d\d:\d\d \d{{4}})()\]"), ("%b %d %H:%M:%S %Y",)),
    (re.compile(rf"^((?:{_MONTHS}) +\d+ \d\d:\d\d:\d\d)()"), ("%b %d %H:%M:%S",)),
    (re.compile(r"\b[IWEF](\d{4} \d\d:\d\d:\d\d)\.(\d{1,9})"), ("%m%d %H:%M:%S",)),
)
_UPTIME = re.compile(r"^(?:<\d+>)?\[ *(\d+\.\d+)\]")
_SYSLOG_HOST = re.compile(rf"^(?:{_MONTHS}) +\d+ \d\d:\d\d:\d\d ([\w.-]+) \S+")
_MASK = re.compile(r"0x[0-9a-f]+|\b[0-9a-f]{8,}\b|\d+", re.IGNORECASE)


@dataclass(frozen=True)
class Line:
    """One line of trouble. `time` in seconds, comparable within one host only; None where the line carries none."""

    text: str
    path: Path
    number: int  # from 1
    time: float | None
    rank: int | None
    host: str

    @property
    def place(self) -> str:
        """`logs/rank3.log:17`."""
        return f"{self.path}:{self.number}"

    @property
    def template(self) -> str:
        """The line without its numbers: what repeats is one line."""
        return _MASK.sub("#", self.text)[:400]


def troubled(path: Path) -> Iterator[Line]:
    """Lines that may tell of trouble, in order. A line without a time has that of the last one that had one."""
    rank, host = rank_of(path), host_of(path)
    time: float | None = None
    with path.open("r", encoding="utf-8", errors="replace") as file:
        for number, raw in enumerate(file, 1):
            text = raw[:LONGEST].rstrip()
            if not TROUBLE.search(text):
                continue
            found = time_of(text)
            time = time if found is None else found
            if CALM.search(text) and not SERIOUS.search(text):
                continue
            named = RANK_IN_LINE.search(text)
            own = next(int(value) for value in named.groups() if value) if named else rank
            said = _SYSLOG_HOST.match(text)
            yield Line(text, path, number, time, own, said[1] if said else host)


def rank_of(path: Path) -> int | None:
    """The rank that a log file's path names: rank3.log, attempt_0/3/stderr.log, worker-3.log; None where it names none."""
    found = RANK_IN_PATH.search(path.as_posix())
    return next((int(value) for value in found.groups() if value is not None), None) if found else None


def host_of(path: Path) -> str:
    """The host that a log file's path names, or nothing."""
    found = HOST_IN_PATH.findall(path.as_posix())
    return str(found[-1]) if found else ""


def time_of(text: str) -> float | None:
    """Seconds; of lines without a year, in the year 1904, so that a leap day is one."""
    head = text[:120]
    for pattern, forms in _TIMES:
        if (found := pattern.search(head)) is None:
            continue
        said = " ".join(found[1].replace("T", " ").split())
        for form in forms:
            year = "" if "%Y" in form else "1904 "
            try:
                moment = datetime.strptime(year + said, ("" if not year else "%Y ") + form).replace(tzinfo=UTC)
            except ValueError:
                continue
            return moment.timestamp() + (float(f"0.{found[2]}") if found[2] else 0.0)
    uptime = _UPTIME.match(head)
    return float(uptime[1]) if uptime else None
