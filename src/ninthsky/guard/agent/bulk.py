"""Pieces of shards, sealed with AES-256-GCM, on a socket of their own.

CURVE's cipher (XSalsa20-Poly1305) is made for processors without AES instructions: it costs more than ten times as much per
byte as AES-GCM does where the processor has them, and copies of states are nearly all that agents send. So the CURVE connection
of two agents hands over a fresh random key, once, and what is sealed under it goes beside that connection:

    8 bytes of the session's id, 8 bytes of a counter | header (msgpack, authenticated) | data (encrypted) and tag

Who connects shows a token derived from the session's key (0MQ's PLAIN), so that a stranger gets no frame in at all; one who has
overheard the token gets no further than the seal.

The counter is the nonce: a key seals each value once, and a receiver takes only larger ones, so that nothing recorded can be
played again. What does not open under a known session's key is dropped and counted; no part of it is looked at before.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import struct
from collections import Counter
from typing import Any, Generic, TypeVar

import msgspec
import zmq
import zmq.asyncio
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from zmq.auth.asyncio import AsyncioAuthenticator

from ninthsky.guard.wire import BACKLOG, FAILED_HANDSHAKES, HANDSHAKE_MILLISECONDS, MAX_MESSAGE, count_handshakes

KEY_BITS = 256
ID_BYTES = 8
_DOMAIN = "bulk"
_NUMBER = struct.Struct(">Q")
_HWM = 16  # messages on their way
_BUFFER = 4 << 20  # bytes of the kernel's: fewer turns for each piece

M = TypeVar("M")
_encoder = msgspec.msgpack.Encoder()


def new_session() -> tuple[bytes, bytes]:
    """(id, key) of a session, to be told over an encrypted line and never used twice."""
    return os.urandom(ID_BYTES), AESGCM.generate_key(KEY_BITS)


class BulkSender:
    """The sending end of one session. Connects again for ever; what was under way is lost then, and its owner sends it anew."""

    def __init__(self, context: zmq.asyncio.Context, id: bytes, key: bytes, address: str, port: int) -> None:
        self._id, self._cipher, self._number = id, AESGCM(key), 0
        self._socket = context.socket(zmq.PUSH)
        for option, value in ((zmq.IMMEDIATE, 1), (zmq.SNDHWM, _HWM), (zmq.RECONNECT_IVL, 100), (zmq.RECONNECT_IVL_MAX, 1_000)):
            self._socket.setsockopt(option, value)
        self._socket.plain_username, self._socket.plain_password = id.hex().encode(), _token(key).encode()
        _set_common(self._socket)
        self._socket.connect(f"tcp://{address}:{port}")

    async def send(self, message: Any) -> None:
        """A message with `data`. Waits for a connection and for room."""
        self._number += 1
        header = _encoder.encode(msgspec.structs.replace(message, data=memoryview(b"")))
        sealed = self._cipher.encrypt(_nonce(self._number), message.data, self._id + header)
        await self._socket.send_multipart([self._id + _NUMBER.pack(self._number), header, sealed], copy=False)

    def close(self) -> None:
        self._socket.close(linger=0)


class BulkListener(Generic[M]):
    """The receiving end of all sessions. `authenticator`: the context's."""

    def __init__(
        self, context: zmq.asyncio.Context, types: Any, bind: str, refused: Counter[str], authenticator: AsyncioAuthenticator
    ) -> None:
        self._decoder: msgspec.msgpack.Decoder[M] = msgspec.msgpack.Decoder(types)
        self._refused = refused
        self._authenticator = authenticator
        self._sessions: dict[bytes, _Session] = {}
        self._socket = context.socket(zmq.PULL)
        self._socket.setsockopt(zmq.RCVHWM, _HWM)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE)
        self._socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MILLISECONDS)
        self._socket.setsockopt(zmq.BACKLOG, BACKLOG)
        self._socket.plain_server = True
        self._socket.zap_domain = _DOMAIN.encode()
        monitor = self._socket.get_monitor_socket(FAILED_HANDSHAKES)
        self._monitor = asyncio.ensure_future(count_handshakes(monitor, refused, "bulk: "))
        _set_common(self._socket)
        self._socket.bind(f"tcp://{bind}:*")
        self.port = int(self._socket.getsockopt_string(zmq.LAST_ENDPOINT).rsplit(":", 1)[1])

    def admit(self, sender: str, id: bytes, key: bytes) -> bool:
        """Takes a session in; the sender's older one ends. False for an id or a key of the wrong length, or another's id."""
        taken = self._sessions.get(id)
        if len(id) != ID_BYTES or len(key) != KEY_BITS // 8 or (taken is not None and taken.sender != sender):
            return False
        if taken is None:
            self._sessions = {known: session for known, session in self._sessions.items() if session.sender != sender}
            self._sessions[id] = _Session(sender, AESGCM(key), _token(key))
            tokens = {known.hex(): session.token for known, session in self._sessions.items()}
            self._authenticator.configure_plain(_DOMAIN, tokens)
        return True

    async def receive(self) -> tuple[str, M]:
        """The next message that opens, and whose it is."""
        while True:
            try:
                frames = await self._socket.recv_multipart(copy=False)
            except zmq.Again:
                continue  # told to be readable, and its sender was gone before it was read
            opened = self._open([frame.buffer for frame in frames])
            if opened is not None:
                return opened

    def _open(self, frames: list[memoryview]) -> tuple[str, M] | None:
        if len(frames) != 3 or len(frames[0]) != ID_BYTES + _NUMBER.size:
            self._refused["malformed bulk"] += 1
            return None
        id, (number,) = bytes(frames[0][:ID_BYTES]), _NUMBER.unpack(frames[0][ID_BYTES:])
        session = self._sessions.get(id)
        if session is None or number <= session.newest:
            self._refused["unknown session" if session is None else "bulk replayed"] += 1
            return None
        header = bytes(frames[1])
        try:
            data = session.cipher.decrypt(_nonce(number), frames[2], id + header)
            message = self._decoder.decode(header)
        except (InvalidTag, msgspec.ValidationError, msgspec.DecodeError):
            self._refused["bulk does not open"] += 1
            return None
        session.newest = number
        return session.sender, msgspec.structs.replace(message, data=memoryview(data))  # type: ignore[type-var]

    def close(self) -> None:
        self._monitor.cancel()
        self._socket.disable_monitor()
        self._socket.close(linger=0)


class _Session:
    def __init__(self, sender: str, cipher: AESGCM, token: str) -> None:
        self.sender, self.cipher, self.token, self.newest = sender, cipher, token, 0


def _token(key: bytes) -> str:
    return hmac.digest(key, b"connect", "sha256").hex()


def _nonce(number: int) -> bytes:
    return b"\0\0\0\0" + _NUMBER.pack(number)


def _set_common(socket: zmq.asyncio.Socket) -> None:
    for option, milliseconds in ((zmq.HEARTBEAT_IVL, 1_000), (zmq.HEARTBEAT_TIMEOUT, 3_000), (zmq.HEARTBEAT_TTL, 3_000)):
        socket.setsockopt(option, milliseconds)
    for option in (zmq.SNDBUF, zmq.RCVBUF):
        socket.setsockopt(option, _BUFFER)
