"""The rank's side: what is counted in the record, and an optimizer's own count of steps."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from ninthsky.guard.foreign.watcher import ForeignRecord, _steps_done  # noqa: E402
from ninthsky.guard.probe.record import GROUPS, parse  # noqa: E402


def test_groups_beyond_those_that_fit_are_not_counted(tmp_path: Path) -> None:
    record = ForeignRecord(tmp_path / "record")
    for group in range(1, GROUPS + 1):
        assert record.enqueue(group, 5) == 1
    number = record.enqueue(99, 7)
    record.complete(99, number)
    record.complete(GROUPS, 1)
    seen = parse((tmp_path / "record").read_bytes())
    assert number == 0 and seen is not None
    assert [(group.id, group.enqueued, group.op) for group in seen.groups] == [(id, 1, 5) for id in range(1, GROUPS + 1)]
    assert [group.completed for group in seen.groups] == [0] * (GROUPS - 1) + [1]


def test_an_optimizer_that_was_restored_goes_on_counting() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    adam, plain = torch.optim.AdamW([weight]), torch.optim.SGD([weight])
    assert _steps_done(adam, ask_device=True) is None
    weight.grad = torch.ones(3)
    for _ in range(3):
        adam.step()
        plain.step()
    again = torch.optim.AdamW([weight])
    again.load_state_dict(adam.state_dict())
    assert _steps_done(again, ask_device=True) == _steps_done(again, ask_device=False) == 3
    assert _steps_done(plain, ask_device=True) is None
