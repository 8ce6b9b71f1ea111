"""How many ranks the job had at each step, and how many it can have: a shard belongs to a step's number of ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class Worlds:
    """`rows`: (last step before it, ranks), oldest first; the first is (-1, ranks)."""

    def __init__(self, rows: Iterable[Sequence[int]] = ()) -> None:
        self.rows: list[tuple[int, int]] = []
        for after, ranks in rows:
            self.begin(after, ranks)

    def begin(self, after: int, ranks: int) -> None:
        """A generation of so many ranks goes on from the state after step `after`: what was done later counts no more."""
        self.rows = [row for row in self.rows if row[0] < after]
        if not self.rows or self.rows[-1][1] != ranks:
            self.rows.append((after, ranks))

    def at(self, step: int) -> int:
        """Ranks that did `step`; 0 before there were any."""
        return next((ranks for after, ranks in reversed(self.rows) if after < step), 0)


def largest(full: int, smaller: Sequence[int], cards: int) -> int:
    """The most ranks that so many cards can take; 0 where there are too few for any."""
    return max((ranks for ranks in (full, *smaller) if ranks <= cards), default=0)
