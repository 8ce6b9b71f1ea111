"""ZeroMQ sockets with CURVE: every message is encrypted, every peer is known by its key, every size is bounded.

What a stranger sends (no key, wrong key, a frame too large, bytes that are no message) is dropped and counted by reason.
A message's `data` (a piece of a shard) travels in a frame of its own: it goes from the file's pages into the cipher, and from
the cipher into the receiver's file, without a copy in Python.
"""

from __future__ import annotations

import asyncio
import ctypes
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import msgspec
import zmq
import zmq.asyncio
from zmq.auth.asyncio import AsyncioAuthenticator
from zmq.utils.monitor import parse_monitor_message

from ninthsky.guard.keys import Keyring

MAX_MESSAGE = 8 << 20  # bytes
PIECE = 1 << 20  # bytes of a shard in one message
HANDSHAKE_MILLISECONDS = 3_000  # who has not shown a key by then is cut off: a connection costs a descriptor
BACKLOG = 1024  # connections that the kernel keeps for us, so that strangers do not crowd out our own
IN_A_ROW = 64  # messages, before other work has its turn
FLOOD = 500  # messages a second; from there on they are fetched in batches: to be woken for each costs more than to read it
RATE_SECONDS = 0.25  # over which that is reckoned
PAUSE = 0.005  # seconds between two batches
MOST_WAITING = 4_096  # messages kept for a peer whose queue is full

M = TypeVar("M")

_KEPT_MEMORY = 256 << 20  # bytes that malloc may keep for the next message
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGEST_MMAP_THRESHOLD = 32 << 20  # of glibc on 64 bits
_LARGE, _LITTLE_MEMORY = 1 << 20, 4 << 20  # bytes: blocks that go back to the kernel at once; what malloc keeps of others

_DOMAIN = "ninthsky"

FAILED_HANDSHAKES = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
_encoder = msgspec.msgpack.Encoder()


class _Gate:
    """pyzmq asks it about each client's public key."""

    def __init__(self, keys: Keyring, refused: Counter[str]) -> None:
        self.known = set(keys.public.values())
        self.refused = refused

    def callback(self, domain: str, key: bytes) -> bool:
        allowed = key.decode() in self.known  # pyzmq hands it over in the text form that key files have
        if not allowed:
            self.refused["unknown key"] += 1
        return allowed


class Listener(Generic[M]):
    """The listening end. Senders are named by their keys, not by what they say of themselves.

    Only one Listener per zmq context: pyzmq has one authenticator per context.
    """

    def __init__(self, context: zmq.asyncio.Context, keys: Keyring, types: Any, bind: str, port: int = 0) -> None:
        self.refused: Counter[str] = Counter()
        self._names = {public: name for name, public in keys.public.items()}
        self._decoder: msgspec.msgpack.Decoder[M] = msgspec.msgpack.Decoder(types)
        self.authenticator = AsyncioAuthenticator(context)
        self.authenticator.start()
        self.authenticator.configure_curve_callback(_DOMAIN, credentials_provider=_Gate(keys, self.refused))
        self._routes: dict[str, bytes] = {}
        # Without asyncio's own socket: of 2,304 hosts, a future for each message costs more than the message.
        self._socket: zmq.Socket[bytes] = zmq.Socket(context, zmq.ROUTER)
        _set_common(self._socket, keys)  # callers ping, and their pings say how long to wait for the next one
        self._socket.curve_server = True
        self._socket.zap_domain = _DOMAIN.encode()
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MILLISECONDS)
        self._socket.setsockopt(zmq.BACKLOG, BACKLOG)
        self._monitor = asyncio.ensure_future(
            count_handshakes(self._socket.get_monitor_socket(FAILED_HANDSHAKES), self.refused)
        )
        self._socket.bind(f"tcp://{bind}:{port or '*'}")
        self.port = int(self._socket.getsockopt_string(zmq.LAST_ENDPOINT).rsplit(":", 1)[1])
        self._loop = asyncio.get_running_loop()
        self._came = asyncio.Event()
        self._taken = 0
        self._counted = (self._loop.time(), 0)  # when the rate was last reckoned, messages by then
        self._flooded = False
        self._waiting: dict[bytes, deque[list[Any]]] = {}  # by route: messages for which that peer's queue had no room
        self._file = int(self._socket.get(zmq.FD))
        self._loop.add_reader(self._file, self._look)

    def _look(self) -> None:
        """0MQ's descriptor tells once of a change, and any call on the socket may take that."""
        events: Any = self._socket.get(zmq.EVENTS)
        if events & zmq.POLLIN:
            self._came.set()
        if events & zmq.POLLOUT:
            for route, waiting in list(self._waiting.items()):
                while waiting and self._send_now(waiting[0]):
                    waiting.popleft()
                if not waiting:
                    del self._waiting[route]

    async def receive(self) -> tuple[str, M]:
        """The next message and its sender's name."""
        while True:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                await self._wait()
                continue
            self._taken += 1
            if self._taken % IN_A_ROW == 0:
                await asyncio.sleep(0)
            if len(frames) < 2:
                self.refused["malformed"] += 1
                continue
            sender = self._names.get(str(frames[1].get("User-Id")))
            if sender is None:
                self.refused["unknown key"] += 1
                continue
            try:
                message = _message(self._decoder, frames[1:])
            except (msgspec.ValidationError, msgspec.DecodeError):
                self.refused["malformed"] += 1
                continue
            self._routes[sender] = frames[0].bytes
            return sender, message

    async def _wait(self) -> None:
        """Until there may be another message."""
        now, (at, taken) = self._loop.time(), self._counted
        if now - at > RATE_SECONDS:
            self._flooded = self._taken - taken > FLOOD * (now - at)
            self._counted = (now, self._taken)
        if self._flooded:
            self._loop.remove_reader(self._file)  # it would wake us for the first of them
            await asyncio.sleep(PAUSE)
            self._loop.add_reader(self._file, self._look)
        self._came.clear()
        self._look()
        await self._came.wait()

    def send(self, peer: str, message: Any) -> bool:
        """Queues a message; False where that peer has never been heard."""
        route = self._routes.get(peer)
        if route is None:
            return False
        frames = [route, *_frames(message)]
        if route in self._waiting or not self._send_now(frames):
            # Of a peer that takes nothing any more the oldest are forgotten: commands are repeated until acknowledged.
            self._waiting.setdefault(route, deque(maxlen=MOST_WAITING)).append(frames)
        self._loop.call_soon(self._look)
        return True

    def _send_now(self, frames: list[Any]) -> bool:
        """False where there is no room for it yet."""
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        except zmq.ZMQError:
            pass  # a route that went away: the peer comes back under a new one, and commands are repeated until acknowledged
        return True

    def close(self) -> None:
        self._monitor.cancel()
        self._loop.remove_reader(self._file)
        self._socket.disable_monitor()
        self._socket.close(linger=200)
        self.authenticator.stop()


class Caller(Generic[M]):
    """The calling end: reconnects for ever; what cannot be sent now is dropped (see protocol.py for why that is safe)."""

    def __init__(self, context: zmq.asyncio.Context, keys: Keyring, server: str, types: Any, address: str, port: int) -> None:
        self.malformed = 0
        self._decoder: msgspec.msgpack.Decoder[M] = msgspec.msgpack.Decoder(types)
        self._socket: zmq.Socket[bytes] = zmq.Socket(context, zmq.DEALER)  # without a future for each message, as in Listener
        _set_common(self._socket, keys)
        self._socket.curve_serverkey = keys.public[server].encode()
        # A peer whose packets are dropped is noticed within three seconds, and a new connection is tried.
        self._socket.setsockopt(zmq.HEARTBEAT_IVL, 1_000)
        self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3_000)
        self._socket.setsockopt(zmq.HEARTBEAT_TTL, 3_000)
        self._socket.setsockopt(zmq.IMMEDIATE, 1)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 100)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1_000)
        self._socket.setsockopt(zmq.CONNECT_TIMEOUT, 2_000)
        self._socket.setsockopt(zmq.SNDHWM, 256)
        self._socket.connect(f"tcp://{address}:{port}")
        self._loop = asyncio.get_running_loop()
        self._came, self._room = asyncio.Event(), asyncio.Event()
        self._taken = 0  # messages since others had their turn
        self._file = int(self._socket.get(zmq.FD))
        self._loop.add_reader(self._file, self._look)

    def _look(self) -> None:
        """0MQ's descriptor tells once of a change, and any call on the socket may take that."""
        events: Any = self._socket.get(zmq.EVENTS)
        if events & zmq.POLLIN:
            self._came.set()
        if events & zmq.POLLOUT:
            self._room.set()

    async def receive(self) -> M:
        while True:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                self._came.clear()
                self._look()
                await self._came.wait()
                continue
            self._taken += 1
            if self._taken % IN_A_ROW == 0:
                await asyncio.sleep(0)
            try:
                return _message(self._decoder, frames)
            except (msgspec.ValidationError, msgspec.DecodeError):
                self.malformed += 1

    def send(self, message: Any) -> bool:
        """Sends now or not at all."""
        return self._send_now([_encoder.encode(message)])

    async def send_when_possible(self, message: Any) -> None:
        """Waits for a connection and for room."""
        frames = _frames(message)
        while not self._send_now(frames):
            self._room.clear()
            self._look()
            await self._room.wait()

    def _send_now(self, frames: list[Any]) -> bool:
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        self._look()
        return True

    def close(self) -> None:
        self._loop.remove_reader(self._file)
        self._socket.close(linger=0)


async def count_handshakes(monitor: Any, refused: Counter[str], prefix: str = "") -> None:
    """Counts who was turned away before it said anything, until cancelled."""
    names = {zmq.EVENT_HANDSHAKE_FAILED_AUTH: "wrong key", zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "no such handshake"}
    while True:
        event = parse_monitor_message(await monitor.recv_multipart())
        refused[prefix + names.get(zmq.Event(event["event"]), "handshake broken off")] += 1


def keep_memory() -> None:
    """For a process that sends shards: malloc keeps what messages have used.

    glibc gives large blocks back to the kernel at once; to get them again, page by page, costs as much as the encryption.
    """
    _mallopt({_M_TRIM_THRESHOLD: _KEPT_MEMORY, _M_MMAP_THRESHOLD: _LARGEST_MMAP_THRESHOLD})


def spare_memory() -> None:
    """For a process that holds much and sends little: what messages and arrays have used goes back to the kernel.

    Otherwise glibc keeps large blocks after the first one, and an arena for each thread: half of a controller's memory.
    """
    _mallopt({_M_TRIM_THRESHOLD: _LITTLE_MEMORY, _M_MMAP_THRESHOLD: _LARGE, _M_ARENA_MAX: 1})


def _mallopt(options: dict[int, int]) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # a C library without it has no such options
        for option, value in options.items():
            mallopt(option, value)


def _frames(message: Any) -> list[Any]:
    data = getattr(message, "data", None)
    if data is None:
        return [_encoder.encode(message)]
    return [_encoder.encode(msgspec.structs.replace(message, data=memoryview(b""))), data]


def _message(decoder: msgspec.msgpack.Decoder[M], frames: Sequence[Any]) -> M:
    """Raises msgspec.ValidationError or DecodeError."""
    message = decoder.decode(frames[0].buffer)
    expected = 2 if hasattr(message, "data") else 1
    if len(frames) != expected:
        raise msgspec.ValidationError(f"{len(frames)} frames")
    return msgspec.structs.replace(message, data=frames[1].buffer) if expected == 2 else message  # type: ignore[type-var]


def _set_common(socket: zmq.Socket[Any], keys: Keyring) -> None:
    socket.curve_publickey = keys.public[keys.name].encode()
    socket.curve_secretkey = keys.secret.encode()
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE)
