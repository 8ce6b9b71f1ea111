"""The shards that an agent holds: own ranks' and copies of another host's, two versions each, as files in shared memory.

    FOLDER/held/shard-R-S      verified, named in inventories, outlives the rank that wrote it
    FOLDER/slot-K-N/shard-R-S  the private folder of one process (its N9_SHARDS)

A process never writes into `held`: the agent links a file there once its checksum is right. So a thawed process that was
replaced can spoil nothing but its own folder. Links cost no memory.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import xxhash
import zmq.asyncio

from ninthsky.guard.bulk import BulkListener, BulkSender, new_session
from ninthsky.guard.keys import Keyring
from ninthsky.guard.protocol import Between, Get, Held, NotHeld, Peer, Piece, Put, Session, SessionOpen, ShardInfo
from ninthsky.guard.wire import PIECE, Caller, Listener

VERSIONS = 2
RESEND_SECONDS = 2.0


def shard_name(rank: int, step: int) -> str:
    """File name of a rank's state after a step."""
    return f"shard-{rank}-{step}"


def view_of(path: Path) -> memoryview:
    """A file's bytes, where they lie. They stay readable after the file has lost its name."""
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))


class ShardStore:
    """What is held on this host. Not for several threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "held"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._held: dict[tuple[int, int], ShardInfo] = {}
        self._views: dict[
            tuple[int, int], memoryview
        ] = {}  # of those adopted here: what is checked once is also sent from there
        self.incoming: dict[tuple[int, int], _Incoming] = {}

    def inventory(self) -> list[ShardInfo]:
        return [self._held[key] for key in sorted(self._held)]

    def find(self, rank: int, step: int, xxh3: str = "") -> Path | None:
        """The file of a held shard, if it has that checksum (any, where none is given)."""
        info = self._held.get((rank, step))
        if info is None or (xxh3 and info.xxh3 != xxh3):
            return None
        return self.folder / shard_name(rank, step)

    def view(self, info: ShardInfo) -> memoryview | None:
        """A held shard's bytes; None where it is not held."""
        path = self.find(info.rank, info.step, info.xxh3)
        if path is None:
            return None
        return self._views.get((info.rank, info.step)) or view_of(path)

    def adopt(self, path: Path, info: ShardInfo) -> str:
        """Takes a finished file in, after checking it. Returns why not, or nothing."""
        try:
            view = view_of(path)
        except OSError as error:
            return f"cannot be read: {error}"
        xxh3 = xxhash.xxh3_64_hexdigest(view)
        if (len(view), xxh3) != (info.size, info.xxh3):
            return f"{len(view)} bytes with xxh3 {xxh3}, announced were {info.size} with {info.xxh3}"
        draft = self.folder / f".{shard_name(info.rank, info.step)}.link"
        draft.unlink(missing_ok=True)
        os.link(path, draft)
        self._keep(draft, info)
        self._views[info.rank, info.step] = view
        return ""

    def receive(self, put: Put) -> str | None:
        """A piece of a copy. None: more is to come; "": whole and right; else why it was refused."""
        key = (put.rank, put.step)
        info = ShardInfo(put.rank, put.step, put.size, put.xxh3)
        if self._held.get(key) == info:
            return ""
        if put.offset == 0:
            if key in self.incoming:
                self.incoming.pop(key).abandon()
            self.incoming[key] = _Incoming(self._draft(info), info)
        incoming = self.incoming.get(key)
        if incoming is None or incoming.info != info or incoming.written != put.offset:
            return None  # the middle of something whose start was lost: its sender begins again
        if put.offset + len(put.data) > put.size:
            self.incoming.pop(key).abandon()
            return f"longer than the announced {put.size} bytes"
        incoming.write(put.data)
        if incoming.written < put.size:
            return None
        del self.incoming[key]
        xxh3 = incoming.finish()
        if xxh3 != put.xxh3:
            incoming.abandon()
            return f"checksum {xxh3}, announced was {put.xxh3}"
        self._keep(incoming.path, info)
        return ""

    def give(self, info: ShardInfo, folder: Path) -> bool:
        """Links a held shard into a process's folder; False where it is not held."""
        path = self.find(info.rank, info.step, info.xxh3)
        if path is None:
            return False
        target = folder / shard_name(info.rank, info.step)
        target.unlink(missing_ok=True)
        os.link(path, target)
        return True

    def discard(self, rank: int, step: int) -> None:
        """Drops a shard that turned out to be damaged: it stands in no inventory any more."""
        if (rank, step) in self._held:
            self._drop((rank, step))

    def verify(self, info: ShardInfo) -> bool:
        """Whether a held shard still is what was taken in; memory that is damaged is not handed on."""
        held = self._held.get((info.rank, info.step))
        if held is None:
            return False
        path = self.folder / shard_name(info.rank, info.step)
        # Its length first: a map must not be read past the end of its file.
        whole = path.exists() and path.stat().st_size == held.size
        if whole and xxhash.xxh3_64_hexdigest(self._views.get((info.rank, info.step)) or view_of(path)) == held.xxh3:
            return True
        self.discard(info.rank, info.step)
        return False

    def forget_after(self, step: int) -> None:
        """Drops what a new generation will do again: its steps may be decided otherwise (a skipped step, say)."""
        for key in [key for key in self._held if key[1] > step]:
            self._drop(key)

    def _draft(self, info: ShardInfo) -> Path:
        """A file to write a copy into: the rank's oldest one if it is about to go, so that its memory is used again.

        Only one of the same size: a file that is still being sent from must not be cut.
        """
        draft = self.folder / f".{shard_name(info.rank, info.step)}.copy"
        steps = sorted(step for rank, step in self._held if rank == info.rank and step != info.step)
        if len(steps) >= VERSIONS and steps[-1] < info.step:
            oldest = self.folder / shard_name(info.rank, steps[0])
            state = oldest.stat()
            if state.st_nlink == 1 and state.st_size == info.size:  # no process holds a link to it
                self._forget(info.rank, steps[0])
                oldest.replace(draft)
        return draft

    def _keep(self, draft: Path, info: ShardInfo) -> None:
        draft.replace(self.folder / shard_name(info.rank, info.step))
        self._held[info.rank, info.step] = info
        steps = sorted((step for rank, step in self._held if rank == info.rank), reverse=True)
        for step in steps[VERSIONS:]:
            self._drop((info.rank, step))

    def _drop(self, key: tuple[int, int]) -> None:
        self._forget(*key)
        (self.folder / shard_name(*key)).unlink(missing_ok=True)

    def _forget(self, rank: int, step: int) -> None:
        del self._held[rank, step]
        self._views.pop((rank, step), None)


class _Incoming:
    def __init__(self, path: Path, info: ShardInfo) -> None:
        self.path, self.info, self.written = path, info, 0
        self._file = path.open("r+b" if path.exists() else "wb", buffering=0)
        self._hash = xxhash.xxh3_64()

    def write(self, data: memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.written += len(data)

    def finish(self) -> str:
        self._file.close()
        return self._hash.hexdigest()

    def abandon(self) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)


def pieces(whole: memoryview, generation: int, info: ShardInfo) -> Iterator[Put]:
    """A shard cut for sending; nothing is copied."""
    for offset in range(0, max(info.size, 1), PIECE):
        yield Put(generation, info.rank, info.step, info.size, info.xxh3, offset, whole[offset : offset + PIECE])


class ShardExchange:
    """Ships shards to the next host's agent, takes copies in, and serves and fetches them.

    `generation` is the newest that the controller told of: older copies are refused.
    `on_held(info)` is called when another host has acknowledged a shard (at once, where there is only one host).
    """

    def __init__(
        self, context: zmq.asyncio.Context, keys: Keyring, store: ShardStore, bind: str, on_held: Callable[[ShardInfo], None]
    ) -> None:
        self.keys, self.store = keys, store
        self.generation = 0
        self.stale_refused = 0
        self.listener: Listener[Session | Get] = Listener(context, keys, Session | Get, bind)
        self.bulk: BulkListener[Put] = BulkListener(context, Put, bind, self.listener.refused)
        self._context = context
        self._on_held = on_held
        self._peers: dict[str, Peer] = {}
        self._callers: dict[str, tuple[Peer, Caller[Between], asyncio.Task[None]]] = {}
        self._senders: dict[str, BulkSender] = {}
        self._opening: dict[str, asyncio.Task[None]] = {}
        self._opened: dict[bytes, asyncio.Future[int]] = {}  # session -> the port of its receiver
        self._partner = ""
        self._alone = False
        self._unheld: dict[int, tuple[ShardInfo, float]] = {}  # rank -> its newest shard, and since when
        self._shipping: dict[int, asyncio.Task[None]] = {}
        self._answers: dict[tuple[int, int], asyncio.Queue[Piece]] = {}

    async def serve(self) -> None:
        """Answers other agents until cancelled."""
        await asyncio.gather(self._serve_questions(), self._serve_copies())

    async def _serve_questions(self) -> None:
        while True:
            sender, message = await self.listener.receive()
            if isinstance(message, Get):
                self.listener.send(sender, self._piece(message))
            elif self.bulk.admit(sender, message.id, message.key):
                self.listener.send(sender, SessionOpen(message.id, self.bulk.port))
            else:
                self.listener.refused["bad session"] += 1

    async def _serve_copies(self) -> None:
        while True:
            self._take(*await self.bulk.receive())

    def set_ring(self, peers: list[Peer]) -> None:
        """Live hosts in ring order. Whatever is not held yet goes to the new partner."""
        self._peers = {peer.host: peer for peer in peers}
        names = [peer.host for peer in peers]
        own = self.keys.name
        partner = names[(names.index(own) + 1) % len(names)] if own in names else ""
        self._alone = partner == own
        for name in [name for name, (peer, _, _) in self._callers.items() if self._peers.get(name) != peer]:
            _, caller, task = self._callers.pop(name)
            task.cancel()
            caller.close()
            if name in self._opening:
                self._opening[name].cancel()
            if name in self._senders:
                self._senders.pop(name).close()
        self._partner = partner
        for info, _ in list(self._unheld.values()):
            self._start_shipping(info)

    def ship(self, info: ShardInfo) -> None:
        """A held shard of an own rank is to get its copy. A newer shard of the rank replaces an older one under way."""
        self._unheld[info.rank] = (info, time.monotonic())
        self._start_shipping(info)

    def unheld_seconds(self, rank: int) -> float:
        """How long the rank's newest shard has waited for its copy."""
        entry = self._unheld.get(rank)
        return time.monotonic() - entry[1] if entry else 0.0

    def drop_unheld(self) -> None:
        """A new generation: nobody waits for the old one's copies."""
        for task in self._shipping.values():
            task.cancel()
        self._shipping.clear()
        self._unheld.clear()

    async def fetch(self, info: ShardInfo, source: str) -> None:
        """Brings a shard from another host into the store. Raises OSError or TimeoutError when it cannot."""
        if self.store.find(info.rank, info.step, info.xxh3):
            return
        if source not in self._peers:
            raise OSError(f"host {source} is not among the live hosts")
        caller = self._caller(source)
        answers = self._answers[info.rank, info.step] = asyncio.Queue()
        try:
            offset, size = 0, 1
            while offset < size:
                await caller.send_when_possible(Get(info.rank, info.step, info.xxh3, offset))
                piece = await asyncio.wait_for(answers.get(), 5.0)
                if piece.size < 0 or (not piece.data and piece.size):
                    raise OSError(f"{source} does not hold {shard_name(info.rank, info.step)} with xxh3 {info.xxh3}")
                size = piece.size
                reason = self.store.receive(Put(self.generation, info.rank, info.step, size, info.xxh3, offset, piece.data))
                if reason:
                    raise OSError(f"{shard_name(info.rank, info.step)} from {source}: {reason}")
                offset += len(piece.data)
        finally:
            del self._answers[info.rank, info.step]
        if not self.store.find(info.rank, info.step, info.xxh3):
            raise OSError(f"{shard_name(info.rank, info.step)} from {source} came incomplete")

    def close(self) -> None:
        self.drop_unheld()
        for _, caller, task in self._callers.values():
            task.cancel()
            caller.close()
        for opening in self._opening.values():
            opening.cancel()
        for sender in self._senders.values():
            sender.close()
        self.bulk.close()
        self.listener.close()

    def _take(self, sender: str, put: Put) -> None:
        if put.generation < self.generation:
            self.stale_refused += 1
            self.listener.refused["stale generation"] += 1
            reason: str | None = f"generation {put.generation} has ended, {self.generation} counts"
        else:
            reason = self.store.receive(put)
        if reason == "":
            self.listener.send(sender, Held(put.rank, put.step, put.xxh3))
        elif reason is not None:
            self.listener.send(sender, NotHeld(put.rank, put.step, put.xxh3, reason))

    def _piece(self, get: Get) -> Piece:
        info = ShardInfo(get.rank, get.step, -1, get.xxh3)
        whole = self.store.view(info) if get.offset or self.store.verify(info) else None
        if whole is None:
            return Piece(get.rank, get.step, get.xxh3, get.offset, -1, memoryview(b""))
        return Piece(get.rank, get.step, get.xxh3, get.offset, len(whole), whole[get.offset : get.offset + PIECE])

    def _start_shipping(self, info: ShardInfo) -> None:
        if info.rank in self._shipping:
            self._shipping.pop(info.rank).cancel()
        if self._alone:
            self._held(info)
        elif self._partner:
            self._shipping[info.rank] = asyncio.ensure_future(self._ship(info, self._partner))

    async def _ship(self, info: ShardInfo, partner: str) -> None:
        sender = await self._sender(partner)
        while True:
            whole = self.store.view(info)
            if whole is None:
                return
            for put in pieces(whole, self.generation, info):
                await sender.send(put)
            # The connection may have gone with pieces in it; the receiver takes the same shard twice without harm.
            await asyncio.sleep(RESEND_SECONDS)

    def _held(self, info: ShardInfo) -> None:
        entry = self._unheld.get(info.rank)
        if entry is None or entry[0] != info:
            return  # an answer about a shard that nobody waits for any more
        del self._unheld[info.rank]
        task = self._shipping.pop(info.rank, None)
        if task is not None:
            task.cancel()
        self._on_held(info)

    def _caller(self, host: str) -> Caller[Between]:
        if host not in self._callers:
            peer = self._peers[host]
            caller: Caller[Between] = Caller(
                self._context, self.keys, host, Held | NotHeld | SessionOpen | Piece, peer.address, peer.port
            )
            self._callers[host] = (peer, caller, asyncio.ensure_future(self._listen(caller)))
        return self._callers[host][1]

    async def _sender(self, host: str) -> BulkSender:
        """The session with a host; opened once for all of its copies."""
        if host not in self._senders:
            opening = self._opening.get(host)
            if opening is None:
                opening = self._opening[host] = asyncio.ensure_future(self._open_session(host))
            await asyncio.shield(opening)  # a newer shard ends this copy, not what others wait for
        return self._senders[host]

    async def _open_session(self, host: str) -> None:
        peer, caller = self._peers[host], self._caller(host)
        id, key = new_session()
        opened = self._opened[id] = asyncio.get_running_loop().create_future()
        try:
            while not opened.done():
                await caller.send_when_possible(Session(id, key))
                await asyncio.wait({opened}, timeout=RESEND_SECONDS)
            self._senders[host] = BulkSender(self._context, id, key, peer.address, opened.result())
        finally:
            del self._opened[id], self._opening[host]

    async def _listen(self, caller: Caller[Between]) -> None:
        while True:
            answer = await caller.receive()
            if isinstance(answer, Held):
                entry = self._unheld.get(answer.rank)
                if entry is not None and (entry[0].step, entry[0].xxh3) == (answer.step, answer.xxh3):
                    self._held(entry[0])
            elif isinstance(answer, SessionOpen):
                opened = self._opened.get(answer.id)
                if opened is not None and not opened.done():
                    opened.set_result(answer.port)
            elif isinstance(answer, Piece) and (answer.rank, answer.step) in self._answers:
                self._answers[answer.rank, answer.step].put_nowait(answer)


def remove_folder(folder: Path) -> None:
    """Removes an agent's folder from shared memory."""
    shutil.rmtree(folder, ignore_errors=True)
