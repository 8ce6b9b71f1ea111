"""The run folder: append-only files, safe on network file systems. No database, no memory maps.

runs/NAME/
  run.toml  settings.json  env.json   as given / every value / machine and versions
  events.jsonl                         what happened, one line each
  stages/STAGE/manifest.json           written last: the commit of a stage
  stages/STAGE/summary.json figures.json evidence.jsonl  and the stage's own outputs
  report.html
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import xxhash

from ninthsky.errors import UserError


def write_json(path: Path, value: Any) -> None:
    """Writes whole or not at all: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, indent=1, sort_keys=True)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def read_json(path: Path) -> Any | None:
    """The value, or None where the file is missing or was cut short."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def append_line(path: Path, record: dict[str, Any]) -> None:
    """One JSON line in one write, so that lines of several processes do not mix."""
    line = (json.dumps(record, ensure_ascii=False) + "\n").encode()
    with path.open("ab", buffering=0) as file:
        file.write(line)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Records of a JSONL file; a last line cut short by a crash is left out."""
    if not path.exists():
        return
    with path.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                yield cast(dict[str, Any], json.loads(line))


def digest(value: Any) -> str:
    """xxh3 of a JSON value in canonical form."""
    return xxhash.xxh3_128_hexdigest(json.dumps(value, sort_keys=True, ensure_ascii=False).encode())


class HashedFile:
    """A file that is digested while it is written, so that nothing is read again to be hashed."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._draft = path.with_name(f".{path.name}.draft")
        self._file: IO[bytes] = self._draft.open("wb")
        self._hash = xxhash.xxh3_128()
        self.size = 0

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._hash.update(view)
        self.size += len(view)
        return self._file.write(view)

    # What pyarrow and zipfile ask of a writable file.
    closed = False

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        self._file.flush()

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        if not self.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._draft.replace(self.path)
            self.closed = True

    def abandon(self) -> None:
        self._file.close()
        self._draft.unlink(missing_ok=True)
        self.closed = True

    @property
    def xxh3(self) -> str:
        return self._hash.hexdigest()

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()


class RunFolder:
    """Paths of one run, and its event log."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def events_path(self) -> Path:
        return self.path / "events.jsonl"

    def stage(self, name: str) -> Path:
        return self.path / "stages" / name

    def event(self, kind: str, **fields: Any) -> None:
        """Appends to the log that `n9 watch` follows."""
        append_line(self.events_path, {"time": time.time(), "kind": kind, **fields})

    def events(self) -> Iterator[dict[str, Any]]:
        return read_lines(self.events_path)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Only one process works in a run folder. Raises UserError N9-RUN-002 when another does."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "run.lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                owner = file.read().strip() or "unknown"
                raise UserError(
                    "N9-RUN-002", f"another process works in this run (pid {owner})", str(self.path), "wait for it, or end it"
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield


def find_run(store: Path, name: str | None) -> RunFolder:
    """The run of that name, or the newest one. A path to a run folder is taken too. Raises UserError N9-RUN-001."""
    if name is not None:
        for candidate in (Path(name), store / name):
            if (candidate / "settings.json").exists():
                return RunFolder(candidate)
    else:
        runs = sorted(store.glob("*/settings.json"), key=lambda path: path.stat().st_mtime)
        if runs:
            return RunFolder(runs[-1].parent)
    raise UserError("N9-RUN-001", f"no run {name!r}" if name else "no run yet", str(store), "n9 demo, or n9 run FILE")
