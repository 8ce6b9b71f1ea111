"""Shards: verified before they are held, refused when stale, shipped and fetched between two agents' stores."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import xxhash
import zmq.asyncio
from hypothesis import given
from hypothesis import strategies as st

from ninthsky.guard.agent.between import Put
from ninthsky.guard.agent.shards import ShardExchange
from ninthsky.guard.agent.store import VERSIONS, ShardStore, pieces, shard_name, view_of
from ninthsky.guard.keys import forge, load_keys
from ninthsky.guard.protocol import Peer, ShardInfo
from ninthsky.guard.wire import PIECE


def make(folder: Path, rank: int, step: int, data: bytes) -> tuple[Path, ShardInfo]:
    path = folder / shard_name(rank, step)
    path.write_bytes(data)
    return path, ShardInfo(rank, step, len(data), xxhash.xxh3_64_hexdigest(data))


def test_only_two_versions_of_a_rank_are_held_and_only_right_ones(tmp_path: Path) -> None:
    store = ShardStore(tmp_path)
    for step in range(4):
        assert store.adopt(*make(tmp_path, 0, step, bytes([step]) * 10)) == ""
    assert [info.step for info in store.inventory()] == [2, 3] and VERSIONS == 2
    path, info = make(tmp_path, 0, 4, b"right")
    path.write_bytes(b"wrong")
    assert "announced" in store.adopt(path, info)
    assert [info.step for info in store.inventory()] == [2, 3]
    store.forget_after(2)
    assert [info.step for info in store.inventory()] == [2]


def test_what_a_process_writes_later_does_not_reach_the_store(tmp_path: Path) -> None:
    """A thawed process replaces its own file: the held one stays as it was verified."""
    store = ShardStore(tmp_path)
    path, info = make(tmp_path, 1, 5, b"good")
    assert store.adopt(path, info) == ""
    draft = tmp_path / "draft"
    draft.write_bytes(b"evil")
    draft.replace(path)
    held = store.find(1, 5)
    assert held is not None and held.read_bytes() == b"good"


@given(st.binary(max_size=200), st.integers(1, 50))
def test_a_copy_in_pieces_equals_its_source(tmp_path_factory: pytest.TempPathFactory, data: bytes, size: int) -> None:
    folder = tmp_path_factory.mktemp("copy")
    store = ShardStore(folder)
    digest = xxhash.xxh3_64_hexdigest(data)
    results = [
        store.receive(Put(1, 2, 3, len(data), digest, offset, memoryview(data)[offset : offset + size]))
        for offset in range(0, max(len(data), 1), size)
    ]
    assert results[-1] == "" and set(results[:-1]) <= {None}
    held = store.find(2, 3, digest)
    assert held is not None and held.read_bytes() == data


def test_the_oldest_copy_gives_its_memory_unless_somebody_holds_a_link(tmp_path: Path) -> None:
    store = ShardStore(tmp_path)
    linked = tmp_path / "linked"
    linked.mkdir()
    for step in range(6):
        data = bytes([step]) * (43 if step % 2 else 50)  # every second one as long as the one whose file it may take
        digest = xxhash.xxh3_64_hexdigest(data)
        assert store.receive(Put(1, 0, step, len(data), digest, 0, memoryview(data))) == ""
        held = store.find(0, step, digest)
        assert held is not None and held.read_bytes() == data
        if step == 1:
            assert store.give(store.inventory()[-1], linked)
    assert (linked / shard_name(0, 1)).read_bytes() == bytes([1]) * 43
    assert [info.step for info in store.inventory()] == [4, 5]


def test_a_damaged_or_overlong_copy_is_refused(tmp_path: Path) -> None:
    store = ShardStore(tmp_path)
    digest = xxhash.xxh3_64_hexdigest(b"right")
    assert "checksum" in str(store.receive(Put(1, 0, 0, 5, digest, 0, memoryview(b"wrong"))))
    assert "longer" in str(store.receive(Put(1, 0, 0, 5, digest, 0, memoryview(b"right and more"))))
    assert not store.inventory()


class Pair:
    """Two agents' exchanges on loopback, and what each was told is held."""

    def __init__(self, folder: Path) -> None:
        forge(folder / "keys", ["a", "b"])
        self.held: dict[str, list[ShardInfo]] = {"a": [], "b": []}
        self.contexts = {name: zmq.asyncio.Context() for name in "ab"}
        self.stores = {name: ShardStore(folder / name) for name in "ab"}
        self.exchanges = {
            name: ShardExchange(
                self.contexts[name],
                load_keys(folder / "keys" / f"{name}.json"),
                self.stores[name],
                "127.0.0.1",
                self.held[name].append,
            )
            for name in "ab"
        }
        self.peers = [Peer(name, "127.0.0.1", self.exchanges[name].listener.port) for name in "ab"]

    async def run(self, work: Callable[[Pair], Awaitable[None]]) -> None:
        tasks = [asyncio.ensure_future(exchange.serve()) for exchange in self.exchanges.values()]
        try:
            await asyncio.wait_for(work(self), 30)
        finally:
            for task in tasks:
                task.cancel()
            for exchange in self.exchanges.values():
                exchange.close()
            for context in self.contexts.values():
                context.destroy(linger=0)


def pair(folder: Path, work: Callable[[Pair], Awaitable[None]]) -> None:
    async def run() -> None:
        await Pair(folder).run(work)

    asyncio.run(run())


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.01)


def test_a_shard_is_shipped_acknowledged_and_fetched_back(tmp_path: Path) -> None:
    data = os.urandom(2 * PIECE + 17)

    async def work(pair: Pair) -> None:
        for exchange in pair.exchanges.values():
            exchange.set_ring(pair.peers)
        path, info = make(tmp_path, 0, 7, data)
        assert pair.stores["a"].adopt(path, info) == ""
        pair.exchanges["a"].ship(info)
        assert pair.exchanges["a"].unheld_seconds(0) > 0
        await until(lambda: pair.held["a"] == [info])
        assert pair.exchanges["a"].unheld_seconds(0) == 0
        held = pair.stores["b"].find(0, 7)
        assert held is not None and held.read_bytes() == data
        pair.stores["a"].forget_after(-1)
        await pair.exchanges["a"].fetch(info, "b")
        assert pair.stores["a"].inventory() == [info]
        with pytest.raises(OSError, match="does not hold"):
            await pair.exchanges["a"].fetch(ShardInfo(3, 3, 0, "x"), "b")

    pair(tmp_path, work)


def test_a_stale_generation_is_refused_and_counted(tmp_path: Path) -> None:
    async def work(pair: Pair) -> None:
        a, b = pair.exchanges.values()
        a.generation, b.generation = 1, 2
        for exchange in (a, b):
            exchange.set_ring(pair.peers)
        path, info = make(tmp_path, 0, 7, b"old")
        assert pair.stores["a"].adopt(path, info) == ""
        a.ship(info)
        await until(lambda: b.stale_refused > 0)
        assert not pair.stores["b"].inventory() and not pair.held["a"]
        assert b.listener.refused["stale generation"] == b.stale_refused

    pair(tmp_path, work)


def test_one_host_alone_holds_for_itself_and_a_new_partner_gets_what_waits(tmp_path: Path) -> None:
    async def work(pair: Pair) -> None:
        a = pair.exchanges["a"]
        path, info = make(tmp_path, 0, 7, b"state")
        assert pair.stores["a"].adopt(path, info) == ""
        a.set_ring([pair.peers[0], Peer("b", "127.0.0.1", 9)])  # nobody listens there
        a.ship(info)
        await asyncio.sleep(0.1)
        assert not pair.held["a"]
        a.set_ring(pair.peers[:1])
        assert pair.held["a"] == [info]

    pair(tmp_path, work)


def test_pieces_of_an_empty_file(tmp_path: Path) -> None:
    path, info = make(tmp_path, 0, 0, b"")
    assert [put.data for put in pieces(view_of(path), 1, info)] == [b""]


@pytest.mark.parametrize("damage", ["a bit", "cut", "gone"])
def test_what_was_damaged_while_it_was_held_is_not_handed_on_and_stands_in_no_inventory(tmp_path: Path, damage: str) -> None:
    data = os.urandom(PIECE + 17)

    async def work(pair: Pair) -> None:
        for exchange in pair.exchanges.values():
            exchange.set_ring(pair.peers)
        path, info = make(tmp_path, 0, 7, data)
        _, older = make(tmp_path, 0, 6, data[1:])
        for each in (older, info):
            assert pair.stores["b"].adopt(tmp_path / shard_name(0, each.step), each) == ""
        if damage == "a bit":
            with path.open("r+b") as file:  # the very memory that is held
                file.write(bytes([data[0] ^ 1]))
        elif damage == "cut":
            os.truncate(path, 5)
        else:
            (pair.stores["b"].folder / shard_name(0, 7)).unlink()
        with pytest.raises(OSError, match="does not hold"):
            await pair.exchanges["a"].fetch(info, "b")
        assert pair.stores["b"].inventory() == [older] and not pair.stores["a"].inventory()
        await pair.exchanges["a"].fetch(older, "b")
        pair.stores["a"].discard(0, 6)
        assert not pair.stores["a"].inventory()

    pair(tmp_path, work)
