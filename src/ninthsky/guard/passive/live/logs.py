"""Log files of a running job from their ends on: lines that tell of trouble, and the newest step's number, if there is one."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ninthsky.guard.passive.lines import Line, LineReader

AT_ONCE = 1 << 20  # bytes of a file with one look
BEHIND = 16 << 20  # bytes: what is further back of a flood is passed over, and counted
LOOK_AGAIN = 5.0  # seconds until folders are looked through for new files
FILES = 512  # followed at most
LONGEST = 16_384  # bytes of a line without its end that are kept

_STEP = re.compile(r"\b(?:global[_ ]?step|step|iter(?:ation)?)s?\b['\"]?\s*[:=\[/#]?\s*\[?\s*(\d{1,9})\b", re.IGNORECASE)
_BAR = re.compile(r"\|\s*(\d{1,9})/\d{1,9}\s*\[")  # tqdm: "  5%|#    | 10/200 [00:10<..."
_ENDS = re.compile(rb"\r\n|\n|\r")  # bars redraw themselves behind \r


@dataclass
class Steps:
    """Step numbers as the logs tell them. Times in seconds of the monotonic clock."""

    newest: int = -1
    seen: int = 0  # how often it rose
    moved: float = 0.0
    longest: float = 0.0  # between two rises

    def take(self, text: str, now: float) -> None:
        """Only a number that rises counts: an epoch that begins anew, or a second counter, moves nothing backwards."""
        found = _STEP.search(text) or _BAR.search(text)
        if found is None or int(found[1]) <= self.newest:
            return
        if self.seen:
            self.longest = max(self.longest, now - self.moved)
        self.newest, self.moved = int(found[1]), now
        self.seen += 1


@dataclass
class _File:
    reader: LineReader
    offset: int
    inode: int
    number: int = 0  # lines since the watch began
    begun: bytes = b""


@dataclass
class Logs:
    """Follows files, and all files in folders, those that come later too (from their beginning)."""

    paths: list[Path]
    steps: Steps = field(default_factory=Steps)
    skipped: int = 0  # bytes passed over
    _files: dict[Path, _File] = field(default_factory=dict)
    _due: float = -math.inf  # when folders are looked through again
    _inodes: set[int] = field(default_factory=set)  # of all that was ever followed
    _rank_of: dict[Path, int] = field(default_factory=dict)

    def add(self, paths: Iterable[Path], rank_of: Mapping[Path, int]) -> None:
        """More files, found meanwhile."""
        self._rank_of.update(rank_of)
        self.paths += [path for path in paths if path not in self.paths]
        self._due = min(self._due, 0.0)

    def owner(self, path: Path) -> int | None:
        """The rank whose file it is, where it is one rank's alone."""
        return self._rank_of.get(path)

    @property
    def followed(self) -> int:
        """How many files."""
        return len(self._files)

    def read(self, now: float | None = None) -> list[Line]:
        """Lines of trouble that were added since."""
        now = time.monotonic() if now is None else now
        if now >= self._due:
            self._find(first=math.isinf(self._due))
            self._due = now + LOOK_AGAIN
        return [line for path, file in self._files.items() for line in self._read(path, file, now)]

    def _find(self, *, first: bool) -> None:
        for given in self.paths:
            inside = (path for path in given.rglob("*") if path.is_file()) if given.is_dir() else (given,)
            for path in inside:
                if path in self._files or len(self._files) >= FILES or not path.is_file():
                    continue
                status = path.stat()
                # New are those that appear in folders; not what was named, nor one that was followed under its former name.
                old = first or path == given or status.st_ino in self._inodes
                reader = LineReader(path, self._rank_of.get(path))
                self._inodes.add(status.st_ino)
                self._files[path] = _File(reader, status.st_size if old else 0, status.st_ino)

    def _read(self, path: Path, file: _File, now: float) -> Iterator[Line]:
        try:
            with path.open("rb") as opened:
                status = os.fstat(opened.fileno())
                if status.st_ino != file.inode or status.st_size < file.offset:
                    file.inode, file.offset, file.begun = status.st_ino, 0, b""  # rotated, or cut short
                    self._inodes.add(status.st_ino)
                if status.st_size - file.offset > BEHIND:
                    self.skipped += status.st_size - file.offset - AT_ONCE
                    file.offset, file.begun = status.st_size - AT_ONCE, b""
                if status.st_size == file.offset:
                    return
                opened.seek(file.offset)
                data = opened.read(AT_ONCE)
        except OSError:
            return  # removed, or on a mount that is away: it is tried again with the next look
        file.offset += len(data)
        *whole, begun = _ENDS.split(file.begun + data)
        file.begun = begun[-LONGEST:]
        for raw in whole:
            text = raw[:LONGEST].decode("utf-8", "replace")
            file.number += 1
            self.steps.take(text, now)
            if (line := file.reader.take(file.number, text)) is not None:
                yield line
