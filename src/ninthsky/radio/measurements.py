"""3GPP measurement files -> rows of hours: TS 32.435 (`measCollecFile`) and TS 28.532 (`measDataFile`), XML, plain or gzip.

Both name the end of a granularity period and its length, so the hour that a value belongs to is never guessed. Counters are
those of TS 28.552: `RRU.PrbTotDl` is the mean share of downlink resource blocks in use, in percent. Values marked suspect
are taken as unknown. Nothing outside the file is read: the parser fetches no entities and refuses documents that expand.
"""

from __future__ import annotations

import datetime
import gzip
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import polars as pl

LOAD = "RRU.PrbTotDl"
ENDINGS = (".xml", ".xml.gz")
REFUSE_SHARE = 0.05  # more files than this beyond reading: the delivery is not what it is said to be
MOST_BYTES = 2_000_000_000  # of one file once unpacked
_DURATION = re.compile(r"^PT(?:(\d+)H)?(?:(\d+)M)?(?:(\d+)S)?$")
_SCHEMA: dict[str, Any] = {"ts": pl.Datetime("us"), "station": pl.String, "cell": pl.String, "load": pl.String}


class Damaged(ValueError):
    """A measurement file that cannot be read, and why."""


@dataclass
class Delivery:
    """Rows of one or many measurement files, and what was found in them: (what, how often, what was done)."""

    rows: pl.DataFrame
    found: list[tuple[str, int, str]] = field(default_factory=list)


@dataclass
class _Rows:
    """Columns that grow, and counts of what was left out."""

    ts: list[datetime.datetime] = field(default_factory=list)
    station: list[str] = field(default_factory=list)
    cell: list[str] = field(default_factory=list)
    load: list[str | None] = field(default_factory=list)
    suspect: int = 0
    absent: int = 0


def is_measurement(path: Path) -> bool:
    """Whether `path` is read here: an XML file, or a folder that holds some."""
    return path.name.lower().endswith(ENDINGS) or (path.is_dir() and any(_files(path)))


def read_measurements(path: Path, counter: str = LOAD) -> Delivery:
    """Rows ts (start of the period, local as written), station, cell, load (text, None unknown) of a file or folder.

    The station is the managed element, the cell its measured object's distinguished name. Raises Damaged with the reason when a
    single file, or over 5 % of a folder's, cannot be read, or when none has `counter`.
    """
    files = sorted(_files(path)) if path.is_dir() else [path]
    rows, damaged = _Rows(), []
    for file in files:
        own = _Rows()
        try:
            _read(file, counter, own)
        except Damaged as error:
            damaged.append(f"{file.name}: {error}")
            continue
        for column in ("ts", "station", "cell", "load"):
            getattr(rows, column).extend(getattr(own, column))
        rows.suspect += own.suspect
        rows.absent += own.absent
    if damaged and len(damaged) > REFUSE_SHARE * len(files):
        raise Damaged(damaged[0] if len(files) == 1 else f"{len(damaged)} of {len(files)} files cannot be read; {damaged[0]}")
    if not rows.ts:
        raise Damaged(f"no measured object has the counter {counter!r}")
    table = pl.DataFrame({name: getattr(rows, name) for name in _SCHEMA}, schema=_SCHEMA)
    found = [
        (f"files that cannot be read ({damaged[0]})" if damaged else "", len(damaged), "left out"),
        ("values marked suspect", rows.suspect, "unknown"),
        (f"measured objects without {counter}", rows.absent, "left out"),
    ]
    return Delivery(table, [row for row in found if row[1]])


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.name.lower().endswith(ENDINGS) and path.is_file())


def _read(path: Path, counter: str, rows: _Rows) -> None:
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as stream:
            _parse(_Bounded(stream), counter, rows)
    except ElementTree.ParseError as error:
        raise Damaged(f"no well-formed XML: {error}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise Damaged(f"cannot be read: {error}") from error
    except (LookupError, ValueError) as error:
        raise Damaged(str(error)) from error


class _Bounded:
    """A stream that ends with an error where a small packed file unpacks without end."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._left = stream, MOST_BYTES

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise Damaged(f"over {MOST_BYTES:,} bytes once unpacked")
        return data


def _parse(stream: Any, counter: str, rows: _Rows) -> None:
    """One pass; each `measInfo` is forgotten once read. Raises ValueError with what is wrong."""
    element, place, root = "", -1, ""
    end: datetime.datetime | None = None
    length = datetime.timedelta(hours=1)
    open_tags: list[Any] = []
    for event, node in ElementTree.iterparse(stream, events=("start", "end")):
        tag = _local(node.tag)
        if event == "start":
            if not open_tags:
                root = tag
                if root not in {"measCollecFile", "measDataFile"}:
                    raise ValueError(
                        f"<{root}> is no measurement file: <measCollecFile> (TS 32.435) or <measDataFile> (TS 28.532)"
                    )
            open_tags.append(node)
            if tag in {"managedElement", "measEntity"}:
                element = node.get("userLabel") or node.get("localDn") or ""
            elif tag == "measInfo":
                place, end = -1, None
            elif tag == "measData":
                element = ""
            continue
        open_tags.pop()
        if tag == "granPeriod":
            end, length = _time(node.get("endTime")), _length(node.get("duration"))
        elif tag == "measTypes":
            names = (node.text or "").split()
            place = names.index(counter) if counter in names else -1
        elif tag == "measType" and (node.text or "").strip() == counter:
            place = int(node.get("p", "0")) - 1
        elif tag == "measValue":
            if end is None:
                raise ValueError("a <measValue> stands before its <granPeriod>: no time is known for it")
            _value(node, element, end - length, place, rows)
        if tag in {"measValue", "measInfo", "measData"} and open_tags:
            open_tags[-1].remove(node)
    if not root:
        raise ValueError("the file is empty")


def _value(node: Any, element: str, start: datetime.datetime, place: int, rows: _Rows) -> None:
    if place < 0:
        rows.absent += 1
        return
    suspect, value = False, None
    for child in node:
        tag = _local(child.tag)
        if tag == "measResults":
            values = (child.text or "").split()
            value = values[place] if place < len(values) else None
        elif tag == "r" and child.get("p") == str(place + 1):
            value = (child.text or "").strip()
        elif tag == "suspect":
            suspect = (child.text or "").strip().lower() == "true"
    rows.suspect += suspect
    cell = (node.get("measObjLdn") or "").strip()
    rows.ts.append(start)
    rows.station.append(element or cell)
    rows.cell.append(cell)
    rows.load.append(None if suspect or value in {"", "NIL", None} else value)


def _local(tag: Any) -> str:
    return str(tag).rpartition("}")[2]


def _time(text: str | None) -> datetime.datetime:
    """Wall time as written; the offset after it is cut off, since a day's shape follows the wall clock."""
    try:
        return datetime.datetime.fromisoformat(text or "").replace(tzinfo=None)
    except ValueError as error:
        raise ValueError(f"endTime={text!r} of a granularity period is no time") from error


def _length(text: str | None) -> datetime.timedelta:
    match = _DURATION.match(text or "")
    seconds = sum(int(part or 0) * unit for part, unit in zip(match.groups(), (3600, 60, 1), strict=True)) if match else 0
    if not 0 < seconds <= 3600:
        raise ValueError(f"a granularity period of duration={text!r}; PT3600S or shorter is wanted")
    return datetime.timedelta(seconds=seconds)
