"""Where raw pages come from. A source lists what it has first and reads bytes only for the pages that were chosen."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ninthsky.errors import UserError
from ninthsky.run.progress import Progress

_HTML = (".html", ".htm", ".xhtml")
_LANGUAGE_FOLDER = re.compile(r"^[a-z]{2,3}(?:[-_][A-Za-z]{2,4})?$")


@dataclass(frozen=True)
class Entry:
    """A page that a source has. `language` is what its path says, or empty; pages with equal `group` are translations."""

    path: str
    group: str
    language: str = ""


@dataclass(frozen=True)
class Source:
    """A named source: what it has, and a reader of chosen paths that yields (path, bytes) in the order asked for."""

    name: str
    entries: tuple[Entry, ...]
    read: Callable[[list[str]], Iterator[tuple[str, bytes]]]
    made: bool = False


def entry(path: str) -> Entry:
    """A path such as `zh-CN/apt.html` says its language, and that `en-US/apt.html` is its translation."""
    parts = path.split("/")
    for index, part in enumerate(parts[:-1]):
        if _LANGUAGE_FOLDER.match(part):
            language = re.split("[-_]", part)[0]
            return Entry(path, "/".join([*parts[:index], "*", *parts[index + 1 :]]), language)
    return Entry(path, path)


def group(source: str, path: str) -> str:
    """Name of the set of aligned pages that a page belongs to."""
    return f"{source}:{entry(path).group}"


class Teller(Protocol):
    """Who is told what goes on while a source is fetched; a StageContext is one."""

    def say(self, text: str) -> None: ...
    def progress(self, title: str, total: float | None = None, unit: str = "") -> AbstractContextManager[Progress]: ...


def open_source(name: str, teller: Teller) -> Source:
    """`made`, `debian-handbook`, or a path: a folder of HTML, an HTML file, a WARC, a Parquet with columns id and html.

    Raises UserError N9-DATA-001 when nothing of the kind is there.
    """
    if name == "made":
        from ninthsky.data.made import source

        return source()
    if name == "debian-handbook":
        from ninthsky.data.handbook import source as handbook

        return handbook(teller)
    return from_path(name)


def from_path(name: str) -> Source:
    """A source made of files. Raises UserError N9-DATA-001."""
    path = Path(name).expanduser()
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in _HTML and p.is_file())
        names = [p.relative_to(path).as_posix() for p in files]
        if not names:
            raise UserError(
                "N9-DATA-001", "the folder holds no HTML", str(path), f"files wanted: {', '.join('*' + e for e in _HTML)}"
            )
        return Source(name, tuple(map(entry, names)), lambda chosen: ((p, (path / p).read_bytes()) for p in chosen))
    if not path.is_file():
        raise UserError(
            "N9-DATA-001", f"no such source of pages: {name}", str(path), "sources: made, debian-handbook, or a path"
        )
    lower = path.name.lower()
    if lower.endswith((".warc", ".warc.gz")):
        return _stream(name, lambda: _warc(path))
    if lower.endswith(".parquet"):
        return _stream(name, lambda: _parquet(path))
    if lower.endswith(_HTML):
        return Source(name, (Entry(path.name, path.name),), lambda chosen: ((p, path.read_bytes()) for p in chosen))
    raise UserError(
        "N9-DATA-001", "not a kind of file that holds pages", str(path), "kinds: .html .htm .warc .warc.gz .parquet"
    )


def _stream(name: str, records: Callable[[], Iterator[tuple[str, bytes]]]) -> Source:
    """A source that is read from front to back, once for its list and once for its pages."""
    names = [path for path, _ in records()]

    def read(chosen: list[str]) -> Iterator[tuple[str, bytes]]:
        wanted = set(chosen)
        return ((path, data) for path, data in records() if path in wanted)

    # Rows with equal names would be one document; the first stands.
    return Source(name, tuple(Entry(path, path) for path in dict.fromkeys(names)), read)


def _warc(path: Path) -> Iterator[tuple[str, bytes]]:
    """URL and body of each HTTP response that is HTML. A record cut by the file's end is left out by the reader."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    seen: set[str] = set()
    with path.open("rb") as stream:
        for record in ArchiveIterator(stream, record_types=WarcRecordType.response, parse_http=True):
            url = str(record.headers.get("WARC-Target-URI") or record.record_id)
            kind = (record.http_content_type or "") if record.http_headers else ""
            if url not in seen and ("html" in kind or not kind):
                seen.add(url)
                yield url, record.reader.read()


def _parquet(path: Path) -> Iterator[tuple[str, bytes]]:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    if not {"id", "html"} <= set(file.schema_arrow.names):
        raise UserError("N9-DATA-001", f"no columns id and html; it has {', '.join(file.schema_arrow.names)}", str(path))
    seen: set[str] = set()
    for batch in file.iter_batches(batch_size=64, columns=["id", "html"]):
        for row in batch.to_pylist():
            id = str(row["id"])
            data = row["html"] or b""
            if id not in seen:
                seen.add(id)
                yield id, data.encode() if isinstance(data, str) else data
