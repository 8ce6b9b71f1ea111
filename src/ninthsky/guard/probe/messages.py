"""What a rank and its host's agent say to each other, over a Unix socket in the agent's own folder (mode 0700).

Each frame is a 4-byte length and a msgpack body. The agent's folder holds, beside the socket:

    slot-K.record            the record of the process in card slot K
    shard-R-S                rank R's state after step S, written by the rank itself or received from another host
"""

from __future__ import annotations

import socket
import struct
from typing import Literal

import msgspec

MAX_FRAME = 1 << 20  # bytes; shards travel as files, never in a frame


# -- rank to agent --------------------------------------------------------------------------------------------------------


class Hello(msgspec.Struct, frozen=True, tag=True):
    """First message of a process: which card slot it was started for."""

    slot: int
    pid: int


class Ready(msgspec.Struct, frozen=True, tag=True):
    """Built, one shadow step done on a throw-away mesh: can take any rank at once."""


class StoreServing(msgspec.Struct, frozen=True, tag=True):
    """This rank serves the generation's TCPStore on this port."""

    generation: int
    port: int


class Joined(msgspec.Struct, frozen=True, tag=True):
    """Rebuilt, restored, about to do `step`."""

    generation: int
    rank: int
    step: int


class Shard(msgspec.Struct, frozen=True, tag=True):
    """The file shard-R-S of the agent's folder is complete. Answered by ShardHeld once another host holds a copy."""

    generation: int
    rank: int
    step: int
    size: int
    xxh3: str


class Wanted(msgspec.Struct, frozen=True, tag=True):
    """The job has another number of ranks now: this one needs shard-R-S of rank R of before. Answered by Brought."""

    generation: int
    rank: int
    step: int


class Damaged(msgspec.Struct, frozen=True, tag=True):
    """The file shard-R-S that a rank was to start from is not what was written, or does not fit. Another is wanted."""

    generation: int
    rank: int
    step: int
    reason: str


class Bad(msgspec.Struct, frozen=True, tag=True):
    """The vote before the optimizer step found gradients that are not finite, or far from their peers', on these ranks.
    Answered by Decide. `figures` are told with the verdict. `shares`: which share of the batch each rank has (its own number,
    where left out); when the data is moved on, a rank has the next one."""

    generation: int
    step: int
    attempt: int
    ranks: list[int]
    what: Literal["nonfinite", "outlier", "range"] = "nonfinite"
    figures: list[str] = []
    shares: list[int] = []


class Corrupt(msgspec.Struct, frozen=True, tag=True):
    """Numbers are not what they were, or not what another card makes of them. Answered by Decide, or by a new generation.

    rest: the state of `ranks` changed while it rested. replicas: `ranks` hold other bits than most that should hold the same.
    replay: `ranks` compute something else than others from the same numbers. Where nobody can be named, `suspects` are those
    among whom it is. `trusted`: the newest step whose state can be gone back to; `reload`: every rank has that state by itself.
    """

    generation: int
    step: int
    attempt: int
    kind: Literal["rest", "replicas", "replay"]
    ranks: list[int]
    trusted: int
    reload: bool = False
    suspects: list[int] = []
    figures: list[str] = []


class Anomaly(msgspec.Struct, frozen=True, tag=True):
    """A rule of the training itself fired about the loss: what it saw from step `onset` on, and what it did.

    `record` is known to `n9 why`. Told by one rank; the same again where a step is done again.
    """

    generation: int
    step: int
    onset: int
    record: str
    rule: str
    verdict: str
    facts: list[str]
    ruled_out: list[str]
    remedy: str
    injected: bool = False


class Halt(msgspec.Struct, frozen=True, tag=True):
    """A rule of the training itself stopped it: the job ends, and no other card would mend it."""

    generation: int
    step: int
    reason: str


class Committed(msgspec.Struct, frozen=True, tag=True):
    """Every rank finished `step` and its shard of it is held elsewhere."""

    generation: int
    step: int


class Broken(msgspec.Struct, frozen=True, tag=True):
    """A collective failed; the rank let go of its groups and waits. `step` is the last one it finished."""

    generation: int
    step: int
    error: str


class MayCommit(msgspec.Struct, frozen=True, tag=True):
    """Asks, before a checkpoint becomes visible, whether this generation still counts. Answered by Permit."""

    generation: int
    step: int


class Finished(msgspec.Struct, frozen=True, tag=True):
    """All steps are done. `result` goes into the job's result."""

    generation: int
    rank: int
    result: dict[str, str | int | float]


# -- agent to rank --------------------------------------------------------------------------------------------------------


class Assign(msgspec.Struct, frozen=True, tag=True):
    """Be `rank` in this generation. State to start from: file shard-`rank`-`resume_step`, or none at step 0 or from disk.

    `resume_step` is the last finished step, -1 for a fresh start (or the newest checkpoint on disk).
    One rank of the generation has `serve_store`: it opens a TCPStore on `bind` and answers StoreServing.
    """

    generation: int
    rank: int
    world: int
    resume_step: int
    serve_store: bool
    bind: str
    hosts: list[str]  # host of each rank
    ranks_before: dict[int, str] = {}  # rank -> "host/card" that held it in the last generation, where that changed
    state_world: int = 0  # ranks whose shards make up the state, where those are not `world`: asked for by Wanted
    verified: int | None = None  # newest step whose state can be trusted: later checkpoints are set aside. None: all can


class Rendezvous(msgspec.Struct, frozen=True, tag=True):
    """Where this generation's TCPStore is."""

    generation: int
    address: str
    port: int


class Abort(msgspec.Struct, frozen=True, tag=True):
    """Let go of this generation's groups now: shut down their connected sockets, answer Broken, wait for Assign."""

    generation: int
    reason: str


class Brought(msgspec.Struct, frozen=True, tag=True):
    """The file shard-R-S lies in this process's folder."""

    rank: int
    step: int


class ShardHeld(msgspec.Struct, frozen=True, tag=True):
    """Another host holds shard (rank, step), checksum verified. Where there is only one host, its agent itself."""

    rank: int
    step: int


class Decide(msgspec.Struct, frozen=True, tag=True):
    """What all ranks do with a bad step: redo it as it was, redo it with the data moved on by one rank to find out
    whether the fault follows data or card (never applied), skip it, apply it (outliers, where the guard only advises), or
    redo it after those whose resting state changed have taken it from their own replica again."""

    step: int
    attempt: int
    action: Literal["redo", "rotate", "skip", "apply", "restore"]


class Permit(msgspec.Struct, frozen=True, tag=True):
    """Answer to MayCommit."""

    step: int
    allowed: bool


class Fenced(msgspec.Struct, frozen=True, tag=True):
    """This process belongs to a generation that ended: it was replaced. Write nothing, join nothing, exit."""

    generation: int


class Stop(msgspec.Struct, frozen=True, tag=True):
    """The job is over: exit."""


ToAgent = (
    Hello
    | Ready
    | StoreServing
    | Joined
    | Shard
    | Wanted
    | Damaged
    | Bad
    | Corrupt
    | Anomaly
    | Halt
    | Committed
    | Broken
    | MayCommit
    | Finished
)
ToRank = Assign | Rendezvous | Abort | Brought | ShardHeld | Decide | Permit | Fenced | Stop

_encoder = msgspec.msgpack.Encoder()
_to_agent: msgspec.msgpack.Decoder[ToAgent] = msgspec.msgpack.Decoder(ToAgent)
_to_rank: msgspec.msgpack.Decoder[ToRank] = msgspec.msgpack.Decoder(ToRank)
_length = struct.Struct("<I")


def frame(message: ToAgent | ToRank) -> bytes:
    """The message as it goes over the socket."""
    body = _encoder.encode(message)
    return _length.pack(len(body)) + body


def decode_to_agent(body: bytes) -> ToAgent:
    """Raises msgspec.ValidationError for anything that is no message of a rank."""
    return _to_agent.decode(body)


def decode_to_rank(body: bytes) -> ToRank:
    """Raises msgspec.ValidationError for anything that is no message of an agent."""
    return _to_rank.decode(body)


def receive(connection: socket.socket) -> bytes | None:
    """The body of the next frame, None at the end of the stream. Raises ValueError for a frame over MAX_FRAME."""
    head = _exactly(connection, _length.size)
    if head is None:
        return None
    (size,) = _length.unpack(head)
    if size > MAX_FRAME:
        raise ValueError(f"frame of {size} bytes, at most {MAX_FRAME} allowed")
    return _exactly(connection, size)


def _exactly(connection: socket.socket, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            return None
        data += part
    return bytes(data)
