"""Where raw pages come from. A source lists what it has first and reads bytes only for the pages that were chosen."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from ninthsky.data.formats import Raw, files_of, read_file, whole_file
from ninthsky.run.progress import Progress

_LANGUAGE_FOLDER = re.compile(r"^[a-z]{2,3}(?:[-_][A-Za-z]{2,4})?$")


@dataclass(frozen=True)
class Entry:
    """A page that a source has. `language` is what its path says, or empty; pages with equal `group` are translations."""

    path: str
    group: str
    language: str = ""


@dataclass(frozen=True)
class Source:
    """A named source: what it has, and a reader of chosen paths, which come in the source's own order."""

    name: str
    entries: tuple[Entry, ...]
    read: Callable[[list[str]], Iterator[Raw]]
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
    """`made`, `debian-handbook`, or a path or URL of a file or folder of one of the formats.

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
    """A source made of files, local or at a URL. Raises UserError N9-DATA-001."""
    files = files_of(str(Path(name).expanduser()) if "://" not in name else name)
    alone = len(files) == 1
    names: list[str] = []
    for url, file in files:
        names += [file] if whole_file(url) else [_within(file, raw, alone) for raw in read_file(url, file)]

    def read(chosen: list[str]) -> Iterator[Raw]:
        wanted = set(chosen)
        for url, file in files:
            if whole_file(url) and file not in wanted:
                continue
            for raw in read_file(url, file):
                path = _within(file, raw, alone)
                if path in wanted:
                    yield replace(raw, path=path)

    # Rows with equal names would be one document; the first stands.
    return Source(name, tuple(map(entry, dict.fromkeys(names))), read)


def _within(file: str, raw: Raw, alone: bool) -> str:
    """A record's name within a source: files of a folder may hold records of the same name, such as 1, 2, 3."""
    return raw.path if alone or raw.path.startswith(file) or "://" in raw.path else f"{file}#{raw.path}"
