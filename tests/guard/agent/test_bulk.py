"""The sealed line for copies: what was recorded, altered or made by a stranger does not open, and is counted."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from ninthsky.guard.agent import bulk
from ninthsky.guard.agent.between import Put, Session
from ninthsky.guard.agent.bulk import BulkListener, BulkSender, new_session
from ninthsky.guard.wire import PIECE

PUT = Put(1, 0, 7, 5, "x", 0, memoryview(b"state"))


class Ends:
    """A listener, what it took, and what it refused."""

    def __init__(self) -> None:
        self.refused: Counter[str] = Counter()
        self.took: asyncio.Queue[tuple[str, Put, bytes]] = asyncio.Queue()
        self.listener: BulkListener[Put] = BulkListener(
            Put, "127.0.0.1", self.refused, lambda sender, put: self.took.put_nowait((sender, put, bytes(put.data)))
        )

    def sender(self, id: bytes, key: bytes) -> BulkSender:
        return BulkSender(id, key, "127.0.0.1", self.listener.port)

    async def arrives(self, sender: str = "a", data: bytes = b"state") -> None:
        took = await self.took.get()
        assert (took[0], took[1].step, took[2]) == (sender, 7, data)

    async def connect(self, *parts: bytes) -> socket.socket:
        loop, end = asyncio.get_running_loop(), socket.socket()
        end.setblocking(False)
        await loop.sock_connect(end, ("127.0.0.1", self.listener.port))
        for part in parts:
            await loop.sock_sendall(end, part)
        return end

    async def until(self, counts: dict[str, int]) -> None:
        while self.refused != counts:
            await asyncio.sleep(0.005)


def with_listener(work: Callable[[Ends], Awaitable[None]]) -> None:
    async def run() -> None:
        ends = Ends()
        serving = asyncio.ensure_future(ends.listener.serve())
        try:
            await asyncio.wait_for(work(ends), 30)
        finally:
            serving.cancel()
            ends.listener.close()

    asyncio.run(run())


def test_what_was_sealed_arrives_with_its_sender_also_on_a_new_connection() -> None:
    async def work(ends: Ends) -> None:
        id, key = new_session()
        assert ends.listener.admit("a", id, key) and ends.listener.admit("a", id, key)
        end = ends.sender(id, key)
        for data in (b"state", b"", bytes(PIECE)):
            await end.send(Put(1, 0, 7, len(data), "x", 0, memoryview(data)))
            await ends.arrives(data=data)
        end._cut()
        await end.send(PUT)
        await ends.arrives()
        assert not ends.refused
        end.close()

    with_listener(work)


def test_nothing_else_opens() -> None:
    async def work(ends: Ends) -> None:
        id, key = new_session()
        ends.listener.admit("a", id, key)
        end = ends.sender(id, key)
        await end.send(PUT)
        await ends.arrives()
        frame = bytes(end._seal(PUT))  # recorded, and sent late
        assert b"state" not in frame
        await end.send(PUT)
        await ends.arrives()
        hello, later = end._hello, (9).to_bytes(8, "big")
        wrong = [
            (frame, "bulk replayed"),
            (later + frame[8:], "bulk does not open"),
            (later + frame[8:-1] + bytes([frame[-1] ^ 1]), "bulk does not open"),
            (later + frame[8:20] + bytes([frame[20] ^ 1]) + frame[21:], "bulk does not open"),
            (later + bytes([255]) * 8, "malformed bulk"),
        ]
        open_ones, expected = [], Counter[str]()
        for bytes_, reason in wrong:
            open_ones.append(await ends.connect(hello, bytes_))
            expected[reason] += 1
            await ends.until(expected)
        open_ones.append(await ends.connect(hello[:8] + bytes(32), frame))  # the right name, another key
        open_ones.append(await ends.connect(b"stranger" + hello[8:], frame))
        await ends.until(expected + Counter({"bulk: wrong key": 2}))
        await end.send(PUT)  # and none of it disturbed the session
        await ends.arrives()
        for each in open_ones:
            each.close()
        end.close()

    with_listener(work)


def test_who_says_nothing_is_cut_off_and_many_of_them_crowd_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "HANDSHAKE_MILLISECONDS", 200)

    async def work(ends: Ends) -> None:
        id, key = new_session()
        ends.listener.admit("a", id, key)
        silent = [await ends.connect() for _ in range(bulk.STRANGERS + 8)]
        end = ends.sender(id, key)
        while not ends.took.qsize():
            await end.send(PUT)
            await asyncio.sleep(0.05)
        while ends.refused["bulk: no such handshake"] < bulk.STRANGERS:
            await asyncio.sleep(0.01)
        assert ends.refused["bulk: too many at once"] >= 8
        for each in silent:
            each.close()
        end.close()

    with_listener(work)


def test_who_is_cancelled_in_the_middle_leaves_no_half_of_a_frame() -> None:
    async def work(ends: Ends) -> None:
        id, key = new_session()
        ends.listener.admit("a", id, key)
        end = ends.sender(id, key)
        for _ in range(20):
            sending = asyncio.ensure_future(end.send(Put(1, 0, 7, PIECE, "x", 0, memoryview(bytes(PIECE)))))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            sending.cancel()
        await end.send(PUT)
        while (await ends.took.get())[2] != b"state":
            pass
        assert not ends.refused
        end.close()

    with_listener(work)


def test_a_session_is_its_senders_and_ends_with_the_next() -> None:
    async def work(ends: Ends) -> None:
        (id, key), (other, another) = new_session(), new_session()
        listener = ends.listener
        assert listener.admit("a", id, key)
        assert (
            not listener.admit("b", id, key) and not listener.admit("b", b"short", key) and not listener.admit("b", other, b"")
        )
        old, new = ends.sender(id, key), ends.sender(other, another)
        await old.send(PUT)
        await ends.arrives()
        assert listener.admit("a", other, another)
        await new.send(PUT)
        await ends.arrives()
        while not ends.refused:
            await old.send(PUT)
            await asyncio.sleep(0.01)
        assert set(ends.refused) == {"bulk: wrong key"} and ends.took.empty()
        old.close()
        new.close()

    with_listener(work)


def test_a_key_is_not_shown() -> None:
    id, key = new_session()
    assert key.hex() not in repr(Session(id, key)) and repr(key) not in repr(Session(id, key))
