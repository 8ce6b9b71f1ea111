"""Debian's `debian-handbook` package as a source of real pages: fetched as a package, unpacked without installing anything.

The book (26 languages, 127 pages each, GPL-2+ or CC BY-SA 3.0) was written by Raphael Hertzog, Roland Mas and translators.
No root is needed: where the system's package lists are empty, lists of our own are fetched into the cache.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import lzma
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from ninthsky.data.formats import Raw
from ninthsky.data.sources import Source, Teller, entry
from ninthsky.errors import UserError
from ninthsky.run.progress import Progress

PACKAGE = "debian-handbook"
_ROOT = "usr/share/doc/debian-handbook/html/"
_MAX_MEMBER = 20_000_000  # bytes; the book's largest page has 0.1 MB
_SECONDS = 600.0
_MEGABYTES, _PAGES = 35, 3_302  # of the package in Debian 12: what progress is held against


def cache_folder() -> Path:
    """XDG's cache folder for this program."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ninthsky"


def source(teller: Teller) -> Source:
    """All pages of the book. The second time nothing is fetched. Raises UserError N9-DATA-001."""
    folder = cache_folder() / PACKAGE
    kept = sorted(folder.glob("*.parquet"))
    if kept:
        stored = kept[-1]
        teller.say(f"{PACKAGE}: pages kept from before ({stored.name})")
    else:
        package = fetch(folder, teller)
        stored = folder / f"{package.stem}.parquet"
        with teller.progress(f"unpacking {package.name}, nothing is installed", _PAGES, "pages") as bar:
            _store(pages_of(package), stored, bar)
        package.unlink()
    paths = pq.read_table(stored, columns=["path"]).column("path").to_pylist()

    def read(chosen: list[str]) -> Iterator[Raw]:
        wanted = set(chosen)
        for batch in pq.ParquetFile(stored).iter_batches(batch_size=128):
            if not wanted.isdisjoint(batch.column("path").to_pylist()):
                yield from (Raw(row["path"], row["html"]) for row in batch.to_pylist() if row["path"] in wanted)

    return Source(PACKAGE, tuple(map(entry, paths)), read)


def fetch(folder: Path, teller: Teller) -> Path:
    """Downloads the package with apt into `folder` and returns its path. Raises UserError N9-DATA-001 with apt's own words."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unavailable(f"the cache cannot be written: {error}", "set XDG_CACHE_HOME to a folder of yours") from error
    present = sorted(folder.glob(f"{PACKAGE}_*.deb"))
    if present:
        return present[-1]
    apt = shutil.which("apt-get")
    if apt is None:
        raise _unavailable("there is no apt-get on this machine", "name a folder of HTML in [data] sources")
    with teller.progress(f"fetching the package {PACKAGE}", _MEGABYTES, "MB") as bar:
        failure = _apt(apt, folder, ["download", PACKAGE], bar)
    if failure:
        teller.say(f"{PACKAGE}: the system's package lists do not have it ({failure}); fetching lists of our own")
        lists = folder / "apt"
        for part in ("lists/partial", "cache/archives/partial"):
            (lists / part).mkdir(parents=True, exist_ok=True)
        own = ["-o", f"Dir::State::lists={lists / 'lists'}", "-o", f"Dir::Cache={lists / 'cache'}"]
        with teller.progress("fetching package lists", None, "MB") as bar:
            failure = _apt(apt, folder, [*own, "update"], bar)
        if not failure:
            with teller.progress(f"fetching the package {PACKAGE}", _MEGABYTES, "MB") as bar:
                failure = _apt(apt, folder, [*own, "download", PACKAGE], bar)
        shutil.rmtree(lists, ignore_errors=True)
    present = sorted(folder.glob(f"{PACKAGE}_*.deb"))
    if not present:
        raise _unavailable(
            failure or "apt-get downloaded nothing", "run `apt-get update`, or name a folder of HTML in [data] sources"
        )
    return present[-1]


def _apt(apt: str, folder: Path, arguments: list[str], bar: Progress) -> str:
    """Runs apt-get in `folder`, told by what it has written there; its own words when it failed, else nothing."""
    # Without the sandbox user apt would complain that another user cannot write into our cache.
    command = [apt, "-q", "-o", "APT::Sandbox::User=root", *arguments]
    began, shown = time.monotonic(), _size(folder)
    with tempfile.TemporaryFile("w+") as words:
        with subprocess.Popen(
            command, cwd=folder, stdout=subprocess.DEVNULL, stderr=words, env={**os.environ, "LC_ALL": "C"}
        ) as process:
            while process.poll() is None:
                if time.monotonic() - began > _SECONDS:
                    process.kill()
                    return f"apt-get gave no answer in {_SECONDS:.0f} s"
                time.sleep(0.1)
                size = _size(folder)
                bar.advance(max(size - shown, 0.0))
                shown = max(size, shown)
        words.seek(0)
        return "" if process.returncode == 0 else (words.read().strip().splitlines() or ["apt-get failed"])[-1]


def _size(folder: Path) -> float:
    """MB under a folder in which another process writes, and renames as it likes."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total / 1e6


def _unavailable(what: str, next: str) -> UserError:
    return UserError(
        "N9-DATA-001", f"the package {PACKAGE} could not be fetched: {what}", '[data] sources = ["debian-handbook"]', next
    )


def pages_of(package: Path) -> Iterator[tuple[str, bytes]]:
    """Path under the book's folder and bytes of each HTML page of a .deb, in the archive's order.

    Members are read, never written to disk, so a path that climbs out of the archive leads nowhere.
    Raises UserError N9-DATA-001 when the file is no Debian package.
    """
    with package.open("rb") as raw, _data_member(raw, package) as data, tarfile.open(fileobj=data, mode="r|") as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            if not (member.isfile() and name.startswith(_ROOT) and name.endswith(".html") and member.size <= _MAX_MEMBER):
                continue
            path = name.removeprefix(_ROOT)
            content = archive.extractfile(member)
            if content is not None and path.count("/") == 1:
                yield path, content.read()


def _data_member(raw: IO[bytes], package: Path) -> IO[bytes]:
    """The decompressed stream of data.tar.* inside the `ar` archive that a .deb is (deb(5))."""
    if raw.read(8) != b"!<arch>\n":
        raise UserError("N9-DATA-001", "not a Debian package", str(package), "delete the file, and run again")
    while len(header := raw.read(60)) == 60:
        name, size = header[:16].rstrip(b" /").decode("ascii", "replace"), int(header[48:58])
        if name.startswith("data.tar"):
            # Only this member's bytes: what follows it in the archive is no part of the stream.
            content = io.BytesIO(raw.read(size))
            if name.endswith(".xz"):
                return cast(IO[bytes], lzma.open(content))
            if name.endswith(".gz"):
                return cast(IO[bytes], gzip.open(content))
            if name.endswith(".zst"):
                import zstandard

                return cast(IO[bytes], zstandard.ZstdDecompressor().stream_reader(content))
            return content
        raw.seek(size + size % 2, io.SEEK_CUR)
    raise UserError("N9-DATA-001", "the Debian package has no data member", str(package), "delete the file, and run again")


def _store(pages: Iterator[tuple[str, bytes]], target: Path, bar: Progress) -> None:
    """Keeps pages as one Parquet file, whole or not at all."""
    draft = target.with_suffix(f".{os.getpid()}.draft")
    schema = pa.schema([("path", pa.string()), ("html", pa.binary())])
    rows = []
    for page in pages:
        rows.append(page)
        bar.advance()
    rows.sort()
    if not rows:
        raise _unavailable("it holds no HTML", "name a folder of HTML in [data] sources")
    with pq.ParquetWriter(draft, schema, compression="zstd") as writer:
        for start in range(0, len(rows), 128):
            part = rows[start : start + 128]
            writer.write_table(pa.table({"path": [row[0] for row in part], "html": [row[1] for row in part]}, schema))
    draft.replace(target)
