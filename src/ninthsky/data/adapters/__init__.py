"""Our reading, extraction, language and rules inside other houses' pipelines: a module for each, imported only where it is.

Both do `batch.records_of` in a watched process, so that they decide as `n9 data extract` does, time limit per page included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ninthsky.config.schema import Data
from ninthsky.data.batch import records_of
from ninthsky.data.formats import Raw
from ninthsky.run.executor.watched import Watched


class Records:
    """Pages to records, many at a time. Its process starts with the first page, so that it can be sent to a worker before."""

    def __init__(self, data: Data) -> None:
        self.data = data
        self._worker: Watched | None = None

    def __call__(self, pages: Sequence[Raw]) -> list[dict[str, Any]]:
        """One record per page, by `batch.record`."""
        if self._worker is None:
            self._worker = Watched(records_of, self.data.page_seconds)
        found: list[dict[str, Any]] = self._worker.do((tuple(pages), self.data))
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {"data": self.data, "_worker": None}


def reason_of(record: dict[str, Any]) -> str:
    """`quality: min_words`; empty where the page is kept."""
    return f"{record['reason']['stage']}: {record['reason']['rule']}" if record["reason"] else ""
