"""A rank of benchmarks/repeats.py: the trainer's own, whose injector also takes faults that are ordered while it runs.

    python -m benchmarks.repeats_rank TRAIN.json

An order is a file FOLDER/orders/*.json with one `ninthsky.train.inject.Fault`, made before its step, FOLDER being the job's.
A wrong product costs the processor time of a hook around every operation, by which the rank would be found as a slow one: with
REPEATS_HOOK=1 in the environment every process has that hook from its start, with an error of nought.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from ninthsky.run.folder import write_json
from ninthsky.train import inject
from ninthsky.train.rank import elastic

ORDERS = "orders"


class Ordered(inject.Injector):
    """Reads the folder again whenever something in it has changed."""

    def __init__(self, faults: list[inject.Fault], folder: Path, events: Path) -> None:
        super().__init__(list(faults), folder, events)
        self._orders, self._seen = folder / ORDERS, -1
        self._hook: inject.WrongProduct | None = None
        if os.environ.get("REPEATS_HOOK") == "1":
            self._hook = inject.WrongProduct(inject.Fault(0, "wrong_matmul", -1, -1, error=0.0))
            self._hook.__enter__()  # for the rest of this process's life

    def due(self, step: int, attempt: int, *kinds: str) -> inject.Fault | None:
        """As the injector's own."""
        changed = self._orders.stat().st_mtime_ns
        if changed != self._seen:
            self._seen = changed
            self.faults = [msgspec.json.decode(path.read_bytes(), type=inject.Fault) for path in self._orders.glob("*.json")]
        return super().due(step, attempt, *kinds)

    def turn_bad(self, step: int, attempt: int) -> None:
        """As the injector's own."""
        if self._hook is not None and (fault := self.due(step, attempt, "wrong_matmul")) is not None:
            self._hook.choose(fault)
        super().turn_bad(step, attempt)


def order(folder: Path, fault: inject.Fault) -> None:
    """Orders it of the job in `folder`, whose ranks have not come to its step."""
    write_json(folder / ORDERS / f"{fault.number:05d}.json", msgspec.to_builtins(fault))


if __name__ == "__main__":
    # Before the module that makes one is imported.
    inject.Injector = Ordered  # type: ignore[misc]
    try:
        status = elastic.main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)
