"""Pieces of shards, sealed with AES-256-GCM, on a TCP connection of their own.

Copies of states are nearly all that agents send, so that every pass over their bytes counts. CURVE's cipher (XSalsa20-Poly1305)
costs more than ten times as much per byte as AES-GCM does where the processor has instructions for it, and 0MQ's queues cost
more than both ends' ciphers together. So the CURVE connection of two agents hands over a fresh random key, once, and what is
sealed under it goes beside that connection: from the shard's pages through the cipher into one buffer, from there to the
kernel.

Who connects sends the session's id and a token of its key first; a stranger gets no frame in at all, and one who has overheard
the token gets no further than the seal. A frame:

    8 bytes of a counter, 4 of the header's length, 4 of the sealed data's | header (msgpack, authenticated) | data and tag

The counter is the nonce: a key seals each value once, and a receiver takes only larger ones, so that nothing recorded can be
played again. A connection on which something does not open is cut and counted; no part of a frame is looked at before.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import socket
import struct
from collections import Counter
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ninthsky.guard.wire import BACKLOG, HANDSHAKE_MILLISECONDS, PIECE

KEY_BITS = 256
ID_BYTES = 8
TOKEN_BYTES = 32
TAG_BYTES = 16
MAX_HEADER = 1024  # bytes
STRANGERS = 64  # connections that have shown no token yet; more are turned away
PROOFS = 4  # connections of one session of which nothing has opened yet
AGAIN_SECONDS = (0.1, 1.0)  # between two attempts to connect, at first and at most
SILENT_MILLISECONDS = 3_000  # what a peer's kernel does not acknowledge by then is taken for lost
_HEAD = struct.Struct(">QII")
_BUFFER = 4 << 20  # bytes of the kernel's: fewer turns for each piece

M = TypeVar("M")
_encoder = msgspec.msgpack.Encoder()


def new_session() -> tuple[bytes, bytes]:
    """(id, key) of a session, to be told over an encrypted line and never used twice."""
    return os.urandom(ID_BYTES), AESGCM.generate_key(KEY_BITS)


class BulkSender:
    """The sending end of one session. Connects again for ever; what was under way is lost then, and its owner sends it anew."""

    def __init__(self, id: bytes, key: bytes, address: str, port: int) -> None:
        self._id, self._cipher, self._number = id, AESGCM(key), 0
        self._hello = id + _token(key)
        self._address = (address, port)
        self._socket: socket.socket | None = None
        self._buffer = bytearray(_HEAD.size + MAX_HEADER + PIECE + TAG_BYTES)
        self._turn = asyncio.Lock()
        self._sending: set[asyncio.Task[None]] = set()

    async def send(self, message: Any) -> None:
        """A message with `data`, PIECE bytes at most. Waits for a connection and for room."""
        sending = asyncio.ensure_future(self._send(message))
        self._sending.add(sending)
        sending.add_done_callback(self._sending.discard)
        await asyncio.shield(sending)  # who is cancelled meanwhile leaves no half of a frame behind

    def close(self) -> None:
        for sending in self._sending:
            sending.cancel()
        self._cut()

    async def _send(self, message: Any) -> None:
        async with self._turn:
            connection = self._socket or await self._connect()
            frame = self._seal(message)
            try:
                await asyncio.get_running_loop().sock_sendall(connection, frame)
            except OSError:
                self._cut()

    def _seal(self, message: Any) -> memoryview:
        self._number += 1
        header = _encoder.encode(msgspec.structs.replace(message, data=memoryview(b"")))
        start, size = _HEAD.size + len(header), len(message.data) + TAG_BYTES
        _HEAD.pack_into(self._buffer, 0, self._number, len(header), size)
        self._buffer[_HEAD.size : start] = header
        whole = memoryview(self._buffer)[: start + size]
        self._cipher.encrypt_into(_nonce(self._number), message.data, self._id + header, whole[start:])
        return whole

    async def _connect(self) -> socket.socket:
        loop, wait = asyncio.get_running_loop(), AGAIN_SECONDS[0]
        while True:
            connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            _set_common(connection)
            try:
                async with asyncio.timeout(SILENT_MILLISECONDS / 1e3):
                    await loop.sock_connect(connection, self._address)
                    await loop.sock_sendall(connection, self._hello)
            except (OSError, TimeoutError):
                connection.close()
                await asyncio.sleep(wait)
                wait = min(2 * wait, AGAIN_SECONDS[1])
            except asyncio.CancelledError:
                connection.close()
                raise
            else:
                self._socket = connection
                return connection

    def _cut(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class BulkListener(Generic[M]):
    """The receiving end of all sessions. `take(sender, message)` must be done with the message's data when it returns."""

    def __init__(self, types: Any, bind: str, refused: Counter[str], take: Callable[[str, M], None]) -> None:
        self._decoder: msgspec.msgpack.Decoder[M] = msgspec.msgpack.Decoder(types)
        self._refused, self._take = refused, take
        self._sessions: dict[bytes, _Session] = {}
        self._connections: set[asyncio.Task[None]] = set()
        self._strangers = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        _set_common(self._socket)  # what is accepted inherits it
        self._socket.bind((bind, 0))
        self._socket.listen(BACKLOG)
        self.port = int(self._socket.getsockname()[1])

    def admit(self, sender: str, id: bytes, key: bytes) -> bool:
        """Takes a session in; the sender's older one ends. False for an id or a key of the wrong length, or another's id."""
        taken = self._sessions.get(id)
        if len(id) != ID_BYTES or len(key) != KEY_BITS // 8 or (taken is not None and taken.sender != sender):
            return False
        if taken is None:
            for known, session in list(self._sessions.items()):
                if session.sender == sender:
                    del self._sessions[known]
                    session.end()
            self._sessions[id] = _Session(sender, id, key)
        return True

    async def serve(self) -> None:
        """Takes connections until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._socket)
            except OSError:  # gone again, or no descriptor left
                await asyncio.sleep(0.01)
                continue
            if self._strangers >= STRANGERS:
                self._refused["bulk: too many at once"] += 1
                connection.close()
                continue
            connection.setblocking(False)
            task = asyncio.ensure_future(self._hear(connection))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

    def close(self) -> None:
        for task in self._connections:
            task.cancel()
        self._socket.close()

    async def _hear(self, connection: socket.socket) -> None:
        incoming = _Incoming(connection)
        session = None
        try:
            session = await self._introduced(incoming)
            if session is not None:
                await self._frames(incoming, session)
        except (OSError, EOFError):
            pass  # its sender connects again
        finally:
            connection.close()
            if session is not None:
                session.left(asyncio.current_task())

    async def _introduced(self, incoming: _Incoming) -> _Session | None:
        self._strangers += 1
        try:
            async with asyncio.timeout(HANDSHAKE_MILLISECONDS / 1e3):
                hello = bytes(await incoming.exactly(ID_BYTES + TOKEN_BYTES))
        except (OSError, EOFError, TimeoutError):
            self._refused["bulk: no such handshake"] += 1
            return None
        finally:
            self._strangers -= 1
        session = self._sessions.get(hello[:ID_BYTES])
        if session is None or not hmac.compare_digest(hello[ID_BYTES:], session.token):
            self._refused["bulk: wrong key"] += 1
            return None
        return session if session.came(asyncio.current_task()) else None

    async def _frames(self, incoming: _Incoming, session: _Session) -> None:
        plain = memoryview(bytearray(PIECE))
        while True:
            number, length, size = _HEAD.unpack(await incoming.exactly(_HEAD.size))
            if length > MAX_HEADER or not TAG_BYTES <= size <= PIECE + TAG_BYTES:
                self._refused["malformed bulk"] += 1
                return
            body = await incoming.exactly(length + size)
            if number <= session.newest:
                self._refused["bulk replayed"] += 1
                return
            header, data = bytes(body[:length]), plain[: size - TAG_BYTES]
            try:
                session.cipher.decrypt_into(_nonce(number), body[length:], session.id + header, data)
                message = self._decoder.decode(header)
            except (InvalidTag, msgspec.ValidationError, msgspec.DecodeError):
                self._refused["bulk does not open"] += 1
                return
            session.proved(asyncio.current_task(), number)
            self._take(session.sender, msgspec.structs.replace(message, data=data))  # type: ignore[type-var]


class _Incoming:
    """A connection read into one buffer."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = memoryview(bytearray(MAX_HEADER + PIECE + TAG_BYTES))

    async def exactly(self, size: int) -> memoryview:
        """Good until the next call. Raises EOFError at the end, OSError."""
        loop, part = asyncio.get_running_loop(), self._buffer[:size]
        got = 0
        while got < size:
            count = await loop.sock_recv_into(self._connection, part[got:])
            if not count:
                raise EOFError
            got += count
        return part


class _Session:
    """`newest`: the last counter that opened. The connection on which something opened last is the session's; the one before
    it ends. Of connections on which nothing has opened yet the oldest goes when there are too many."""

    def __init__(self, sender: str, id: bytes, key: bytes) -> None:
        self.sender, self.id, self.cipher, self.token, self.newest = sender, id, AESGCM(key), _token(key), 0
        self._unproved: list[asyncio.Task[Any]] = []
        self._current: asyncio.Task[Any] | None = None
        self._ended = False

    def came(self, task: asyncio.Task[Any] | None) -> bool:
        """False where the session has ended meanwhile."""
        assert task is not None
        self._unproved.append(task)
        if len(self._unproved) > PROOFS:
            self._unproved.pop(0).cancel()
        return not self._ended

    def proved(self, task: asyncio.Task[Any] | None, number: int) -> None:
        self.newest = number
        if task is not self._current:
            assert task is not None
            before, self._current = self._current, task
            self._unproved.remove(task)
            if before is not None:
                before.cancel()

    def left(self, task: asyncio.Task[Any] | None) -> None:
        assert task is not None
        if task in self._unproved:
            self._unproved.remove(task)
        if self._current is task:
            self._current = None

    def end(self) -> None:
        self._ended = True
        for task in (*self._unproved, self._current):
            if task is not None:
                task.cancel()


def _token(key: bytes) -> bytes:
    return hmac.digest(key, b"connect", "sha256")


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")


def _set_common(connection: socket.socket) -> None:
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        connection.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        (socket.TCP_NODELAY, 1), (socket.TCP_KEEPIDLE, 3), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 3),
        (socket.TCP_USER_TIMEOUT, SILENT_MILLISECONDS),
    ):  # fmt: skip
        connection.setsockopt(socket.IPPROTO_TCP, name, value)
