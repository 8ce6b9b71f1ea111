"""The sealed line for copies: what was recorded, altered or made by a stranger does not open, and is counted."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import zmq
import zmq.asyncio
from zmq.auth.asyncio import AsyncioAuthenticator

from ninthsky.guard.agent.bulk import BulkListener, BulkSender, new_session
from ninthsky.guard.protocol import Put, Session

PUT = Put(1, 0, 7, 5, "x", 0, memoryview(b"state"))


def with_listener(work: Callable[[zmq.asyncio.Context, BulkListener[Put], Counter[str]], Awaitable[None]]) -> None:
    async def run() -> None:
        context, refused = zmq.asyncio.Context(), Counter[str]()
        authenticator = AsyncioAuthenticator(context)
        authenticator.start()
        listener: BulkListener[Put] = BulkListener(context, Put, "127.0.0.1", refused, authenticator)
        try:
            await asyncio.wait_for(work(context, listener, refused), 20)
        finally:
            listener.close()
            authenticator.stop()
            context.destroy(linger=0)

    asyncio.run(run())


def sender(context: zmq.asyncio.Context, listener: BulkListener[Put], id: bytes, key: bytes) -> BulkSender:
    return BulkSender(context, id, key, "127.0.0.1", listener.port)


def test_what_was_sealed_arrives_with_its_sender() -> None:
    async def work(context: zmq.asyncio.Context, listener: BulkListener[Put], refused: Counter[str]) -> None:
        id, key = new_session()
        assert listener.admit("a", id, key) and listener.admit("a", id, key)
        end = sender(context, listener, id, key)
        for _ in range(3):
            await end.send(PUT)
            assert await listener.receive() == ("a", PUT)
        assert not refused

    with_listener(work)


def test_nothing_else_opens() -> None:
    async def work(context: zmq.asyncio.Context, listener: BulkListener[Put], refused: Counter[str]) -> None:
        id, key = new_session()
        listener.admit("a", id, key)
        recorded: list[Any] = []
        end = sender(context, listener, id, key)
        plain = context.socket(zmq.PUSH)  # of one who has overheard the token
        plain.plain_username, plain.plain_password = end._socket.plain_username, end._socket.plain_password
        plain.connect(f"tcp://127.0.0.1:{listener.port}")
        send = end._socket.send_multipart

        async def overheard(frames: list[Any], copy: bool) -> None:
            recorded.append([bytes(frame) for frame in frames])
            await send(frames, copy=copy)

        end._socket.send_multipart = overheard  # type: ignore[assignment]
        await end.send(PUT)
        assert await listener.receive() == ("a", PUT)
        (frames,) = recorded
        assert b"state" not in b"".join(frames)
        later = frames[0][:8] + (5).to_bytes(8, "big")
        for wrong in (
            frames,  # played again
            [later, *frames[1:]],  # under a fresh number
            [later, frames[1], bytes([frames[2][0] ^ 1]) + frames[2][1:]],
            [later, bytes([frames[1][0] ^ 1]) + frames[1][1:], frames[2]],
            [b"stranger" + frames[0][8:], *frames[1:]],
            [b"no such thing"],
        ):
            await plain.send_multipart(wrong)
        stranger = sender(context, listener, id, new_session()[1])  # the right name, another key
        sending = asyncio.ensure_future(stranger.send(PUT))
        keyless = context.socket(zmq.PUSH)
        keyless.connect(f"tcp://127.0.0.1:{listener.port}")
        receiving = asyncio.ensure_future(listener.receive())
        while sum(refused.values()) < 6 or not (refused["bulk: wrong key"] and refused["bulk: no such handshake"]):
            await asyncio.sleep(0.01)
        opened = {reason: count for reason, count in refused.items() if not reason.startswith("bulk: ")}
        assert opened == {"bulk replayed": 1, "bulk does not open": 3, "unknown session": 1, "malformed bulk": 1}
        assert not sending.done(), "a stranger's frame does not leave its host"
        sending.cancel()
        await end.send(PUT)  # and none of it disturbed the session
        assert await receiving == ("a", PUT)
        plain.close(linger=0)
        keyless.close(linger=0)

    with_listener(work)


def test_a_session_is_its_senders_and_ends_with_the_next() -> None:
    async def work(context: zmq.asyncio.Context, listener: BulkListener[Put], refused: Counter[str]) -> None:
        (id, key), (other, another) = new_session(), new_session()
        assert listener.admit("a", id, key)
        assert (
            not listener.admit("b", id, key) and not listener.admit("b", b"short", key) and not listener.admit("b", other, b"")
        )
        assert listener.admit("a", other, another)
        old, new = sender(context, listener, id, key), sender(context, listener, other, another)
        late = asyncio.ensure_future(old.send(PUT))
        await new.send(PUT)
        assert await listener.receive() == ("a", PUT)
        while not refused:
            await asyncio.sleep(0.01)
        assert set(refused) == {"bulk: wrong key"} and not late.done()
        late.cancel()

    with_listener(work)


def test_a_key_is_not_shown() -> None:
    id, key = new_session()
    assert key.hex() not in repr(Session(id, key)) and repr(key) not in repr(Session(id, key))
