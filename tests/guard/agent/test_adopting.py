"""Shards are taken in as they were announced, large ones without silencing the agent, late ones not at all."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import xxhash

from ninthsky.guard.agent import adopting, store
from ninthsky.guard.agent.adopting import Adopting
from ninthsky.guard.agent.store import AT_ONCE, ShardStore, shard_name
from ninthsky.guard.probe.messages import Shard


def write(folder: Path, rank: int, step: int, size: int) -> Shard:
    data = bytes([step]) * size
    (folder / shard_name(rank, step)).write_bytes(data)
    return Shard(1, rank, step, size, xxhash.xxh3_64_hexdigest(data))


def test_large_ones_are_digested_in_a_thread_and_keep_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, threads = threading.Event(), []

    def digest(view: memoryview) -> str:
        threads.append(threading.current_thread())
        if len(view) > AT_ONCE:
            assert go.wait(30)
        return xxhash.xxh3_64_hexdigest(view)

    async def run() -> None:
        monkeypatch.setattr(store, "xxhash", SimpleNamespace(xxh3_64_hexdigest=digest))
        held = ShardStore(tmp_path / "agent")
        taken: list[int] = []
        stale: set[int] = set()
        refused: Counter[str] = Counter()
        process: Any = SimpleNamespace(folder=tmp_path)
        work = Adopting(held, lambda _, shard: shard.step not in stale, lambda info: taken.append(info.step), refused)
        serving = asyncio.ensure_future(work.serve())
        work.put(process, write(tmp_path, 0, 0, 10))
        assert taken == [0], "a small one with nothing before it is taken in at once"
        work.put(process, write(tmp_path, 0, 1, AT_ONCE + 1))
        work.put(process, write(tmp_path, 0, 2, AT_ONCE + 1))
        work.put(process, write(tmp_path, 0, 3, 10))
        await asyncio.sleep(0.05)
        assert taken == [0], "the loop went on while the thread waits, and the small one does not overtake"
        stale.add(2)
        (tmp_path / shard_name(0, 3)).write_bytes(b"damaged")
        go.set()
        while sum(refused.values()) < 2:
            await asyncio.sleep(0.01)
        assert taken == [0, 1] and refused["stale shard"] == 1
        assert any("wrong checksum" in reason for reason in refused)
        assert threads[1] is not threading.main_thread()
        assert [info.step for info in held.inventory()] == [0, 1]
        serving.cancel()

    asyncio.run(run())


def test_what_waits_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adopting, "MOST_WAITING", 2)
    refused: Counter[str] = Counter()
    work = Adopting(ShardStore(tmp_path / "agent"), lambda *_: True, lambda _: None, refused)
    for step in range(4):
        work.put(SimpleNamespace(folder=tmp_path), Shard(1, 0, step, AT_ONCE + 1, "x"))  # type: ignore[arg-type]
    assert refused == {"shard: too many wait": 2}
