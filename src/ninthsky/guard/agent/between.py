"""What agents say to each other: pieces of shards, and the keys under which they travel. msgpack by msgspec, over wire.py."""

from __future__ import annotations

import msgspec


class _Message(msgspec.Struct, frozen=True, tag=True):
    pass


class Put(_Message, frozen=True):
    """A piece of a shard that the receiver shall hold."""

    generation: int
    rank: int
    step: int
    size: int
    xxh3: str
    offset: int
    data: memoryview


class Held(_Message, frozen=True):
    """The whole shard is here and its checksum is right."""

    rank: int
    step: int
    xxh3: str


class NotHeld(_Message, frozen=True):
    """The shard was refused: stale generation, wrong size, wrong checksum."""

    rank: int
    step: int
    xxh3: str
    reason: str


class Session(_Message, frozen=True):
    """The sender's pieces will come sealed under this key (see bulk.py). Answered by SessionOpen, also where it was known."""

    id: bytes
    key: bytes

    def __repr__(self) -> str:
        return f"Session({self.id.hex()})"  # a key does not belong in a log


class SessionOpen(_Message, frozen=True):
    """Pieces of this session are taken on this port."""

    id: bytes
    port: int


class Get(_Message, frozen=True):
    """Asks for a piece of a shard."""

    rank: int
    step: int
    xxh3: str
    offset: int


class Piece(_Message, frozen=True):
    """Answer to Get: `size` is the whole shard's, -1 where it is not here."""

    rank: int
    step: int
    xxh3: str
    offset: int
    size: int
    data: memoryview


Between = Put | Held | NotHeld | Session | SessionOpen | Get | Piece
