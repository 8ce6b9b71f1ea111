"""Shards on their way between hosts: copies to the next one, answers to those who fetch, all checked on arrival."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from weakref import WeakValueDictionary

import zmq.asyncio

from ninthsky.guard.agent.between import Between, Get, Held, NotHeld, Piece, Put, Session, SessionOpen
from ninthsky.guard.agent.bulk import BulkListener, BulkSender, new_session
from ninthsky.guard.agent.store import ShardStore, pieces, shard_name
from ninthsky.guard.keys import Keyring
from ninthsky.guard.protocol import Peer, ShardInfo
from ninthsky.guard.wire import PIECE, Caller, Listener

RESEND_SECONDS = 2.0
ANSWER_SECONDS = 5.0  # for one piece of a shard that is fetched


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
        self.bulk: BulkListener[Put] = BulkListener(Put, bind, self.listener.refused, self._take)
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
        self._fetching: WeakValueDictionary[tuple[int, int], asyncio.Lock] = WeakValueDictionary()

    async def serve(self) -> None:
        """Answers other agents until cancelled."""
        await asyncio.gather(self._serve_questions(), self.bulk.serve())

    async def _serve_questions(self) -> None:
        while True:
            sender, message = await self.listener.receive()
            if isinstance(message, Get):
                self.listener.send(sender, await self._piece(message))
            elif self.bulk.admit(sender, message.id, message.key):
                self.listener.send(sender, SessionOpen(message.id, self.bulk.port))
            else:
                self.listener.refused["bad session"] += 1

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
        """Brings a shard from another host into the store. Raises OSError or TimeoutError when it cannot.

        Who wants one that is on its way already waits for it.
        """
        key = (info.rank, info.step)
        lock = self._fetching.get(key) or self._fetching.setdefault(key, asyncio.Lock())
        async with lock:
            if not self.store.find(info.rank, info.step, info.xxh3):
                await self._fetch(info, source)

    async def _fetch(self, info: ShardInfo, source: str) -> None:
        if source not in self._peers:
            raise OSError(f"host {source} is not among the live hosts")
        caller = self._caller(source)
        answers = self._answers[info.rank, info.step] = asyncio.Queue()
        try:
            offset, size = 0, 1
            while offset < size:
                await caller.send_when_possible(Get(info.rank, info.step, info.xxh3, offset))
                piece = await asyncio.wait_for(answers.get(), ANSWER_SECONDS)
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

    async def _piece(self, get: Get) -> Piece:
        info = ShardInfo(get.rank, get.step, -1, get.xxh3)
        whole = self.store.view(info) if get.offset or await self.store.verify(info) else None
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
            self._senders[host] = BulkSender(id, key, peer.address, opened.result())
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
