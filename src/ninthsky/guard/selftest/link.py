"""The way between two hosts: bytes there and back over TCP, each piece with its checksum, and how fast.

It goes over the addresses that agents and gloo use; what NCCL or HCCL carry on other networks is not measured. Both ends know a
token (it came over CURVE); each proves it before a byte is sent, and the serving end takes one peer, within a time.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

import xxhash

from ninthsky.address import bind

PIECE = 1 << 20  # bytes
PIECES = 32  # each way
ROUNDS = 50  # of a small message there and back
SECONDS = 30.0
_HEAD = struct.Struct("<IQ")  # number of the piece, its xxh3
_NONCE = 32


@dataclass(frozen=True)
class Link:
    """MB/s (10^6 bytes) each way as this end saw it, the median round trip, and pieces that were not what was sent."""

    out_mb_s: float
    in_mb_s: float
    round_trip_ms: float
    damaged: int
    pieces: int

    def figures(self) -> dict[str, float]:
        return {
            "out_mb_s": round(self.out_mb_s, 1), "in_mb_s": round(self.in_mb_s, 1),
            "round_trip_ms": round(self.round_trip_ms, 3), "damaged": float(self.damaged), "pieces": float(self.pieces),
        }  # fmt: skip


class LinkError(OSError):
    """The other end could not be reached, is not who it should be, or went away."""


async def serve(token: bytes, address: str, on_port: Callable[[int], None], seconds: float = SECONDS) -> Link:
    """Listens on any free port of `address`, says which, and tests with the one peer that knows the token. Raises LinkError."""
    found: asyncio.Future[Link] = asyncio.get_running_loop().create_future()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        known = False
        try:
            async with asyncio.timeout(seconds):
                known = await _greet(reader, writer, token, first=False)
                link = await _exchange(reader, writer, token, first=False) if known else None
            if link is not None and not found.done():
                found.set_result(link)
        except (OSError, asyncio.IncompleteReadError) as error:
            if known and not found.done():  # strangers come and go; the right one may still come
                found.set_exception(LinkError(f"the connection broke: {error or 'it was closed'}"))
        finally:
            writer.close()

    server = await asyncio.start_server(take, sock=bind(address, 0), limit=4 * PIECE)
    on_port(server.sockets[0].getsockname()[1])
    try:
        return await asyncio.wait_for(found, seconds)
    except TimeoutError:
        raise LinkError(f"no peer finished the test within {seconds:.0f} s") from None
    finally:
        server.close()


async def call(token: bytes, address: str, port: int, seconds: float = SECONDS) -> Link:
    """The other end. Raises LinkError."""
    try:
        async with asyncio.timeout(seconds):
            reader, writer = await asyncio.open_connection(address, port, limit=4 * PIECE)
            try:
                if not await _greet(reader, writer, token, first=True):
                    raise LinkError("the other end does not know the token")
                return await _exchange(reader, writer, token, first=True)
            finally:
                writer.close()
    except TimeoutError:
        raise LinkError(f"not done within {seconds:.0f} s") from None
    except asyncio.IncompleteReadError:
        raise LinkError("the other end closed the connection") from None
    except LinkError:
        raise
    except OSError as error:
        raise LinkError(f"{address}:{port}: {error.strerror or error}") from error


async def _greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: bytes, *, first: bool) -> bool:
    """Each sends a number drawn by chance, and answers the other's with its keyed digest."""
    mine = os.urandom(_NONCE)
    writer.write(mine)
    theirs = await reader.readexactly(_NONCE)
    roles = (b"caller", b"server") if first else (b"server", b"caller")
    writer.write(hmac.digest(token, roles[0] + theirs, "sha256"))
    answer = await reader.readexactly(hashlib.sha256().digest_size)
    return hmac.compare_digest(answer, hmac.digest(token, roles[1] + mine, "sha256"))


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: bytes, *, first: bool) -> Link:
    trips = [await _round(reader, writer, first=first) for _ in range(ROUNDS)]
    pattern = hashlib.shake_256(token).digest(PIECE + PIECES)
    if first:
        out = await _send(reader, writer, pattern)
        speed, damaged = await _receive(reader, writer, pattern)
    else:
        speed, damaged = await _receive(reader, writer, pattern)
        out = await _send(reader, writer, pattern)
    # Each end tells what it found damaged, so that both know of both ways.
    writer.write(struct.pack("<I", damaged))
    await writer.drain()
    (theirs,) = struct.unpack("<I", await reader.readexactly(4))
    return Link(out, speed, 1e3 * sorted(trips)[ROUNDS // 2], damaged + theirs, 2 * PIECES)


async def _round(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, first: bool) -> float:
    begin = time.perf_counter()
    if first:
        writer.write(b"\1")
    await reader.readexactly(1)
    if not first:
        writer.write(b"\1")
    return time.perf_counter() - begin


async def _send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pattern: bytes) -> float:
    """MB/s until the other end has said that it got all."""
    begin = time.perf_counter()
    for number in range(PIECES):
        piece = memoryview(pattern)[number : number + PIECE]
        writer.write(_HEAD.pack(number, xxhash.xxh3_64_intdigest(piece)))
        writer.write(piece)
        await writer.drain()
    await reader.readexactly(1)
    return PIECES * PIECE / 1e6 / max(time.perf_counter() - begin, 1e-9)


async def _receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pattern: bytes) -> tuple[float, int]:
    """MB/s, and pieces that are not what their number and checksum say."""
    begin, damaged = time.perf_counter(), 0
    for number in range(PIECES):
        told, digest = _HEAD.unpack(await reader.readexactly(_HEAD.size))
        piece = await reader.readexactly(PIECE)
        wanted = memoryview(pattern)[number : number + PIECE]
        damaged += told != number or xxhash.xxh3_64_intdigest(piece) != digest or piece != wanted
    writer.write(b"\1")
    await writer.drain()
    return PIECES * PIECE / 1e6 / max(time.perf_counter() - begin, 1e-9), damaged
