"""The way between two hosts: good, cut, spoilt on the way, and asked for by a stranger."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import pytest

from ninthsky.guard.selftest.link import PIECE, Link, LinkError, call, serve

TOKEN = b"t" * 32


async def both(
    spoil: Callable[[bytes], bytes] | None = None, token: bytes = TOKEN
) -> tuple[Link | BaseException, Link | BaseException]:
    """What each end says; `spoil` changes what the calling end sends."""
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    server = asyncio.ensure_future(serve(TOKEN, "127.0.0.1", port.set_result, 10.0))
    there = await port
    if spoil is not None:
        behind = there
        proxy = await asyncio.start_server(lambda r, w: _proxy(r, w, behind, spoil), "127.0.0.1", 0)
        there = proxy.sockets[0].getsockname()[1]
    caller = asyncio.ensure_future(call(token, "127.0.0.1", there, 10.0))
    if token != TOKEN:
        answer = (await asyncio.gather(caller, return_exceptions=True))[0]
        server.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await server
        return answer, answer
    first, second = await asyncio.gather(server, caller, return_exceptions=True)
    return first, second


async def _proxy(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int, spoil: Callable[[bytes], bytes]
) -> None:
    far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)

    async def pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter, change: Callable[[bytes], bytes]) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                sink.write(change(data))
                await sink.drain()
        sink.close()

    await asyncio.gather(pass_on(reader, far_writer, spoil), pass_on(far_reader, writer, lambda data: data))


def test_a_good_link_both_ways() -> None:
    for link in asyncio.run(both()):
        assert isinstance(link, Link)
        assert link.damaged == 0 and link.pieces == 64 and link.out_mb_s > 0 and link.in_mb_s > 0 and link.round_trip_ms > 0


def test_one_flipped_bit_is_seen_and_both_ends_know() -> None:
    passed = 0

    def flip(data: bytes) -> bytes:
        nonlocal passed
        before, passed = passed, passed + len(data)
        if before < PIECE // 2 <= passed:
            at = PIECE // 2 - before - 1
            return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        return data

    for link in asyncio.run(both(flip)):
        assert isinstance(link, Link) and link.damaged == 1


def test_a_link_that_is_cut_in_the_middle_is_told_as_broken() -> None:
    passed = 0

    def cut(data: bytes) -> bytes:
        nonlocal passed
        passed += len(data)
        if passed > 3 * PIECE:
            raise ConnectionResetError
        return data

    assert all(isinstance(end, LinkError) for end in asyncio.run(both(cut)))


def test_who_does_not_know_the_token_learns_and_spoils_nothing() -> None:
    stranger, _ = asyncio.run(both(token=b"x" * 32))
    assert isinstance(stranger, LinkError)


def test_nobody_there() -> None:
    with pytest.raises(LinkError):
        asyncio.run(call(TOKEN, "127.0.0.1", 1, 5.0))
    with pytest.raises(LinkError, match="no peer"):
        asyncio.run(serve(TOKEN, "127.0.0.1", lambda port: None, 0.2))
