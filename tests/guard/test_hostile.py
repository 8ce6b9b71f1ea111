"""A short siege of a running job: every kind of stranger at every port, a rank killed in the midst of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.hostile import besiege

pytestmark = pytest.mark.slow


def test_strangers_are_refused_and_counted_and_a_kill_is_named_all_the_same(tmp_path: Path) -> None:
    figures = besiege(tmp_path, frames=20_000, others=100, peace=1.0, work_ms=30.0)
    assert figures["faults_right"], "two kills, and nothing else was taken for a fault"
    assert figures["done"]["keyless"] == 0, "no frame of a peer without a key left its host"
    refused = figures["refused"]
    for reason in ("no such handshake", "bulk: no such handshake", "unknown process"):
        assert refused[reason] > 0
    assert refused.get("unknown key", 0) + refused.get("wrong key", 0) > 0
