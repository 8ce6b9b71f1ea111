"""Log files of many ranks and hosts -> the few lines that tell of trouble, each with its time, rank and host."""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

LONGEST = 4_000  # characters of a line that are looked at
GZIP = b"\x1f\x8b"
UTF16 = (b"\xff\xfe", b"\xfe\xff")

# Words without which a line tells of no trouble. Everything else, the bulk of any log, is passed over: plain words and not
# patterns, since nearly all the time that a log takes goes into this.
_WORDS = (
    "error|fail|fatal|warn|exception|traceback|kill|timeout|timedout|timed out|timed-out|time out|time-out|xid|edac|denied"
    "|refused|no space|lost|abort|panic|stuck|hang|hung|out of memory|cannot|can't|could not|unable|not found|no such|corrupt"
    "|invalid|mismatch|unreachable|no route|reset|throttl|slowdown|unhealthy|fallen|missing|undefined symbol|already in use"
    "|not responding|blocked for|quota|overheat|temperature|interrupt|segfault"
)
TROUBLE = tuple(_WORDS.split("|"))
SHORT = re.compile(r"\b(?:aer|mce|oom|nan|[a-z]{2}\d{4})\b|err\b")  # in lower case
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


class LineReader:
    """Takes the lines of one file in order; a line without a time has that of the last one that had one.

    `rank` is whose file it is, where its path does not tell.
    """

    def __init__(self, path: Path, rank: int | None = None) -> None:
        self.path = path
        self._rank = rank_of(path) if rank is None else rank
        self._host = host_of(path)
        self._time: float | None = None

    def take(self, number: int, raw: str) -> Line | None:
        """The line where it may tell of trouble, else None."""
        text = raw[:LONGEST].rstrip()
        if not tells_of_trouble(text):
            return None
        found = time_of(text)
        self._time = self._time if found is None else found
        if CALM.search(text) and not SERIOUS.search(text):
            return None
        named = RANK_IN_LINE.search(text)
        own = next(int(value) for value in named.groups() if value) if named else self._rank
        said = _SYSLOG_HOST.match(text)
        return Line(text, self.path, number, self._time, own, said[1] if said else self._host)


def tells_of_trouble(text: str) -> bool:
    """Whether a line has one of the words without which it tells of no trouble."""
    lower = text.lower()
    return any(word in lower for word in TROUBLE) or SHORT.search(lower) is not None


def troubled(path: Path) -> Iterator[Line]:
    """Lines that may tell of trouble, in order. Raises OSError."""
    reader = LineReader(path)
    for number, raw in lines_of(path):
        if (line := reader.take(number, raw)) is not None:
            yield line


def lines_of(path: Path, longest: int = LONGEST) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of each line, none longer than `longest`: the rest of such a line is passed over, never held.

    UTF-8, or UTF-16 where a byte-order mark says so; packed by gzip too. Raises OSError, after the lines that could be read.
    """
    with path.open("rb") as raw:
        head = raw.peek(4)[:4]
        binary = gzip.GzipFile(fileobj=raw) if head[:2] == GZIP else raw
        encoding = "utf-16" if head[:2] in UTF16 and b"\0" in head[2:] else "utf-8"
        number, whole = 0, True
        try:
            with io.TextIOWrapper(binary, encoding, errors="replace") as file:
                while piece := file.readline(longest):
                    if whole:
                        number += 1
                        yield number, piece
                    whole = piece.endswith("\n")
        except (EOFError, zlib.error) as error:
            raise OSError(f"gzip, cut or damaged after line {number}: {error}") from error


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
