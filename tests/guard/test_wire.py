"""Who may talk to controller and agents, and what becomes of strangers' frames. Real sockets on loopback."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio

from ninthsky.errors import UserError
from ninthsky.guard import protocol as p
from ninthsky.guard.agent.between import Between, Get, Piece, Put
from ninthsky.guard.keys import CONTROLLER, Keyring, forge, load_keys
from ninthsky.guard.wire import MAX_MESSAGE, MOST_WAITING, Caller, Listener

REPORT = p.Report(0, "", 0, 0.0, b"")


async def until(holds: Callable[[], bool], what: str) -> None:
    for _ in range(500):
        if holds():
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"waited 10 s for {what}")


def with_listener(tmp_path: Path, work: Callable[[Listener[Any], zmq.asyncio.Context], Awaitable[None]]) -> None:
    """Runs `work` with a listening controller whose keys lie in tmp_path."""

    async def run() -> None:
        forge(tmp_path, ["host-0", "host-1"])
        context = zmq.asyncio.Context()
        listener: Listener[Any] = Listener(context, load_keys(tmp_path / "controller.json"), p.Register | p.Report, "127.0.0.1")
        try:
            await work(listener, context)
        finally:
            listener.close()
            context.destroy(linger=0)

    asyncio.run(run())


def call(context: zmq.asyncio.Context, keys: Keyring, port: int) -> Caller[p.Numbered]:
    return Caller(context, keys, CONTROLLER, p.Numbered, "127.0.0.1", port)


def test_key_files_are_private_and_each_holds_one_secret(tmp_path: Path) -> None:
    paths = forge(tmp_path / "keys", ["host-0"])
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in paths.values())
    mine, theirs = load_keys(paths["host-0"]), load_keys(paths[CONTROLLER])
    assert mine.public == theirs.public and mine.secret != theirs.secret
    assert mine.secret not in repr(mine)
    paths["host-0"].chmod(0o640)
    with pytest.raises(UserError) as caught:
        load_keys(paths["host-0"])
    assert caught.value.code == "N9-GRD-002"


def test_a_peer_is_named_by_its_key(tmp_path: Path) -> None:
    async def work(listener: Listener[Any], context: zmq.asyncio.Context) -> None:
        caller = call(context, load_keys(tmp_path / "host-1.json"), listener.port)
        await caller.send_when_possible(REPORT)
        assert await asyncio.wait_for(listener.receive(), 10) == ("host-1", REPORT)
        assert listener.send("host-1", p.Numbered("me", 1, p.WhoAreYou()))
        assert await asyncio.wait_for(caller.receive(), 10) == p.Numbered("me", 1, p.WhoAreYou())
        assert not listener.send("host-0", p.Numbered("me", 1, p.WhoAreYou())), "it has never been heard"
        caller.close()

    with_listener(tmp_path, work)


def test_a_peer_that_takes_nothing_holds_nobody_up(tmp_path: Path) -> None:
    async def work(listener: Listener[Any], context: zmq.asyncio.Context) -> None:
        deaf, hearing = (call(context, load_keys(tmp_path / f"host-{number}.json"), listener.port) for number in range(2))
        for caller in (deaf, hearing):
            await caller.send_when_possible(REPORT)
            await asyncio.wait_for(listener.receive(), 10)
        for number in range(2 * MOST_WAITING):
            listener.send("host-0", p.Numbered("me", number, p.WhoAreYou()))
        assert listener.send("host-1", p.Numbered("me", 1, p.WhoAreYou()))
        assert await asyncio.wait_for(hearing.receive(), 10) == p.Numbered("me", 1, p.WhoAreYou())
        assert (await asyncio.wait_for(deaf.receive(), 10)).number == 0
        deaf.close()
        hearing.close()

    with_listener(tmp_path, work)


def test_strangers_are_refused_and_counted(tmp_path: Path) -> None:
    """No key at all, a key nobody knows, the right key for another server: none gets a word in."""

    async def work(listener: Listener[Any], context: zmq.asyncio.Context) -> None:
        known = load_keys(tmp_path / "host-0.json")
        public, secret = (key.decode() for key in zmq.curve_keypair())
        stranger = Keyring("host-0", secret, {**known.public, "host-0": public})
        misled = Keyring("host-0", known.secret, {**known.public, CONTROLLER: public})
        callers = [call(context, keys, listener.port) for keys in (stranger, misled)]
        plain = context.socket(zmq.DEALER)
        plain.connect(f"tcp://127.0.0.1:{listener.port}")
        sending: list[asyncio.Future[Any]] = [asyncio.ensure_future(caller.send_when_possible(REPORT)) for caller in callers]
        sending.append(asyncio.ensure_future(plain.send(b"hello")))
        garbage = socket.create_connection(("127.0.0.1", listener.port))
        garbage.sendall(os.urandom(4096))
        receiving = asyncio.ensure_future(listener.receive())
        await until(lambda: listener.refused["unknown key"] > 0, "the unknown key")
        await until(lambda: sum(listener.refused.values()) - listener.refused["unknown key"] > 1, "the others")
        assert not receiving.done()
        honest = call(context, known, listener.port)
        await honest.send_when_possible(REPORT)
        assert (await asyncio.wait_for(receiving, 10))[0] == "host-0", "an honest peer is heard all the same"
        for task in sending:
            task.cancel()
        for caller in (*callers, honest):
            caller.close()
        plain.close(linger=0)
        garbage.close()

    with_listener(tmp_path, work)


def test_oversized_and_malformed_messages_of_a_known_peer_are_dropped(tmp_path: Path) -> None:
    async def work(listener: Listener[Any], context: zmq.asyncio.Context) -> None:
        keys = load_keys(tmp_path / "host-0.json")
        caller = call(context, keys, listener.port)
        for frames in ([b"\xc1 no message"], [b"two", b"frames"], [bytes(MAX_MESSAGE + 1)]):
            await until(partial(caller._send_now, frames), "room for a message")
        receiving = asyncio.ensure_future(listener.receive())
        await until(lambda: listener.refused["malformed"] == 2, "two malformed messages")
        second = call(context, keys, listener.port)
        await second.send_when_possible(REPORT)
        assert await asyncio.wait_for(receiving, 10) == ("host-0", REPORT)
        caller.close()
        second.close()

    with_listener(tmp_path, work)


def test_a_piece_of_a_shard_travels_beside_its_message_and_never_without_it(tmp_path: Path) -> None:
    async def run() -> None:
        forge(tmp_path, ["host-0", "host-1"])
        context = zmq.asyncio.Context()
        listener: Listener[Any] = Listener(context, load_keys(tmp_path / "host-1.json"), Put | Get, "127.0.0.1")
        keys = load_keys(tmp_path / "host-0.json")
        caller: Caller[Between] = Caller(context, keys, "host-1", Between, "127.0.0.1", listener.port)
        try:
            data = os.urandom(100_000)
            put = Put(1, 2, 3, len(data), "x", 0, memoryview(data))
            await caller.send_when_possible(put)
            assert await asyncio.wait_for(listener.receive(), 10) == ("host-0", put)
            assert listener.send("host-0", Piece(2, 3, "x", 0, 4, memoryview(b"four")))
            assert await asyncio.wait_for(caller.receive(), 10) == Piece(2, 3, "x", 0, 4, memoryview(b"four"))
            head = msgspec.msgpack.encode(msgspec.structs.replace(put, data=memoryview(b"")))
            get = msgspec.msgpack.encode(Get(2, 3, "x", 0))
            for frames in ([head], [head, b"a", b"b"], [get, b"a"]):
                await until(partial(caller._send_now, frames), "room for a message")
            receiving = asyncio.ensure_future(listener.receive())
            await until(lambda: listener.refused["malformed"] == 3, "three malformed messages")
            assert not receiving.done()
            receiving.cancel()
        finally:
            caller.close()
            listener.close()
            context.destroy(linger=0)

    asyncio.run(run())
