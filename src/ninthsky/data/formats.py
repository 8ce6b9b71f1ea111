"""Files that hold pages or texts: WARC, WET, JSON lines, Parquet, HTML, plain text; packed or not; local or at an fsspec URL.

A reader yields what can be read. A record that is damaged comes as a record that says so; a file that ends too early ends with
one: each is accounted for later, none stops a shard.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, Literal

import fsspec
import pyarrow as pa
import zstandard
from fsspec.core import url_to_fs

from ninthsky.errors import UserError

_ROWS = 64
_PIECE = 1 << 16  # packed bytes at a time
_LONGEST_LINE = 200_000_000  # bytes of a JSON line: what is longer is skipped, not held
_BODIES = ("html", "raw_html", "text", "content", "raw_content")
_NAMES = ("id", "url", "uri", "path", "doc_id")
_LICENCES = ("license", "licence")


@dataclass(frozen=True)
class Raw:
    """A page or a text as it was found. `path` names it within its file; `trouble` says why it cannot be used."""

    path: str
    data: bytes
    kind: Literal["html", "text"] = "html"
    licence: str = ""
    robots: str = ""  # what the server said of robots (X-Robots-Tag)
    trouble: str = ""


class _Zstandard(io.RawIOBase):
    """What a packed stream unpacks to, frame by frame.

    Raises EOFError where the last frame is cut, which zstandard's own reader takes for an end.
    """

    def __init__(self, packed: IO[bytes]) -> None:
        self._packed = packed
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._begun, self._left, self._behind = False, b"", b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            if self._frame.eof:
                self._behind = self._frame.unused_data
                self._frame, self._begun = zstandard.ZstdDecompressor().decompressobj(), False
            piece, self._behind = self._behind or self._packed.read(_PIECE), b""
            if not piece:
                if self._begun:
                    raise EOFError("the file ends within a zstd frame")
                return 0
            self._begun = True
            self._left = self._frame.decompress(piece)
        size = min(len(buffer), len(self._left))
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size


Reader = Callable[[IO[bytes], str], Iterator[Raw]]


def _one(kind: Literal["html", "text"]) -> Reader:
    def read(stream: IO[bytes], name: str) -> Iterator[Raw]:
        yield Raw(name, stream.read(), kind)

    return read


def _warc(stream: IO[bytes], name: str) -> Iterator[Raw]:
    """Responses that are HTML, and the texts of conversion records (WET), by URL."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    records = 0
    for record in ArchiveIterator(stream, record_types=WarcRecordType.any_type, parse_http=True):
        records += 1
        if record.record_type not in (WarcRecordType.response, WarcRecordType.conversion):
            continue
        url = str(record.headers.get("WARC-Target-URI") or record.record_id)
        declared = record.content_length
        if record.record_type == WarcRecordType.conversion:
            kind: Literal["html", "text"] = "text"
            robots = ""
        else:
            said = (record.http_content_type or "") if record.http_headers else ""
            if said and "html" not in said:
                continue
            kind = "html"
            robots = str(record.http_headers.get("X-Robots-Tag") or "") if record.http_headers else ""
        data = record.reader.read()
        cut = f"the record ends after {len(data)} of {declared} bytes" if len(data) < declared else ""
        yield Raw(url, data, kind, robots=robots, trouble=cut)
    if not records:
        yield Raw(f"{name}#after-0", b"", trouble="there is no WARC record in it")


def _json_lines(stream: IO[bytes], name: str) -> Iterator[Raw]:
    """One object a line, with `html` or `text` (or content, raw_content); named by id, url, or its line."""
    number = 0
    while line := stream.readline(_LONGEST_LINE):
        number += 1
        where = f"{name}#{number}"
        if len(line) == _LONGEST_LINE and not line.endswith(b"\n"):
            while (rest := stream.readline(_LONGEST_LINE)) and not rest.endswith(b"\n"):
                pass
            yield Raw(where, b"", trouble=f"the line is longer than {_LONGEST_LINE:,} bytes")
            continue
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Raw(where, b"", trouble=f"no JSON: {error}"[:200])
            continue
        yield row_of(row, where) if isinstance(row, dict) else Raw(where, b"", trouble="no JSON object")


def row_of(row: dict[str, Any], where: str) -> Raw:
    """A record of named fields. A field that is there and empty is an empty page; `where` names it if no field does."""
    body = next((key for key in _BODIES if isinstance(row.get(key, 0), str | bytes | None)), None)
    named = next((str(row[key]) for key in _NAMES if row.get(key) not in (None, "")), where)
    if body is None:
        return Raw(named, b"", trouble=f"none of the fields {', '.join(_BODIES)} holds a text")
    data = row[body] or b""
    licence = next((str(row[key]) for key in _LICENCES if row.get(key)), "")
    # A lone surrogate, which JSON can write and UTF-8 cannot, becomes a question mark.
    encoded = data.encode("utf-8", "replace") if isinstance(data, str) else data
    return Raw(named, encoded, "html" if "html" in body else "text", licence)


def _parquet(stream: IO[bytes], name: str) -> Iterator[Raw]:
    """Rows with `html` or `text`; named by id, url, or their number. Raises UserError N9-DATA-001 where neither is there."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(stream)
    number = 0
    for batch in file.iter_batches(batch_size=_ROWS, columns=columns_of(file, name)):
        for row in batch.to_pylist():
            number += 1
            yield row_of(row, f"{name}#{number}")


def columns_of(file: Any, name: str) -> list[str]:
    """The columns of a pyarrow ParquetFile that are of use. Raises UserError N9-DATA-001 where none holds pages or texts."""
    have = file.schema_arrow.names
    if not any(key in have for key in _BODIES):
        problem = f"no columns id and html, nor any of {', '.join(_BODIES[1:])}; it has {', '.join(have)}"
        raise UserError("N9-DATA-001", problem, name, "rename its columns")
    return [key for key in (*_NAMES, *_BODIES, *_LICENCES) if key in have]


READERS: dict[str, Reader] = {
    ".html": _one("html"), ".htm": _one("html"), ".xhtml": _one("html"), ".txt": _one("text"),
    ".warc": _warc, ".wet": _warc, ".jsonl": _json_lines, ".ndjson": _json_lines, ".parquet": _parquet,
}  # fmt: skip
_PACKED = (".gz", ".zst")
# What damaged files of these kinds raise while they are read.
_DAMAGED = (EOFError, OSError, zlib.error, zstandard.ZstdError, ValueError, pa.ArrowException)


def suffix(name: str) -> str:
    """The kind of a file by its name, `.warc` for `x.WARC.gz`; empty where no reader is for it."""
    lower = name.lower()
    for packed in _PACKED:
        lower = lower.removesuffix(packed)
    return next((ending for ending in READERS if lower.endswith(ending)), "")


def whole_file(name: str) -> bool:
    """Whether the file is one page or one text."""
    return suffix(name) in (".html", ".htm", ".xhtml", ".txt")


def read_file(url: str, name: str = "") -> Iterator[Raw]:
    """All records of a file; of those with equal names the first. `name`: what to call it in records that have no name.

    Raises UserError N9-DATA-001 where it cannot be opened or has no such columns. Damage met later is a last record's trouble.
    """
    name = name or url
    reader = READERS[suffix(url)]
    # fastwarc unpacks by itself, record by record, which finds the next record after a damaged one.
    packed = None if reader is _warc else "infer"
    seen: set[str] = set()
    count = 0
    try:
        zst = packed is not None and url.lower().endswith(".zst")
        with fsspec.open(url, "rb", compression=None if zst else packed) as stream:
            for raw in reader(io.BufferedReader(_Zstandard(stream), _PIECE) if zst else stream, name):
                count += 1
                if raw.path not in seen:
                    seen.add(raw.path)
                    yield raw
    except _DAMAGED as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise UserError("N9-DATA-001", f"cannot be read: {error}", url, "check the path") from error
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        yield Raw(f"{name}#after-{count}", b"", trouble=f"the file is damaged after {count} records: {text}"[:300])


def files_of(url: str) -> list[tuple[str, str]]:
    """(URL, name below `url`) of all files of a folder that a reader is for, in the order of their names; or of the one file.

    Raises UserError N9-DATA-001 where nothing of the kind is there.
    """
    try:
        system, root = url_to_fs(url)
        is_folder, is_file = system.isdir(root), system.isfile(root)
    except (ValueError, ImportError, OSError) as error:
        raise UserError("N9-DATA-001", f"cannot be opened: {error}", url, "a path, or a URL that fsspec opens") from error
    kinds = "kinds: " + " ".join(f"*{ending}" for ending in READERS) + ", each also .gz or .zst"
    if is_folder:
        base = root.rstrip("/") + "/"
        found = sorted(path for path in system.find(root) if suffix(path))
        if not found:
            raise UserError("N9-DATA-001", "the folder holds no pages", url, kinds)
        return [(system.unstrip_protocol(path), path.removeprefix(base)) for path in found]
    if not is_file:
        raise UserError("N9-DATA-001", f"no such source of pages: {url}", url, "sources: made, debian-handbook, a path or URL")
    if not suffix(root):
        raise UserError("N9-DATA-001", "not a kind of file that holds pages", url, kinds)
    return [(system.unstrip_protocol(root), root.rsplit("/", 1)[-1])]
