"""The controller's append-only journal: what must not be forgotten when it is killed and started again."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

# Written to disk before anything is done about them: generations are fencing tokens, and a lost host must stay lost.
DURABLE = frozenset({"generation", "places", "lost", "kept_out", "fault", "done"})


class Journal:
    """JSON lines. Opening cuts off a last line that a crash left unfinished."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.entries = list(self._read())
        self._file = path.open("ab", buffering=0)

    def write(self, kind: str, **fields: Any) -> None:
        self._file.write(msgspec.json.encode({"kind": kind, "time": time.time(), **fields}) + b"\n")
        if kind in DURABLE:
            os.fdatasync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def _read(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        whole = 0
        with self.path.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                yield msgspec.json.decode(line)
        os.truncate(self.path, whole)
