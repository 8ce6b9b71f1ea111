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
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import xxhash

from ninthsky.guard.agent.between import Put
from ninthsky.guard.protocol import ShardInfo
from ninthsky.guard.wire import PIECE

VERSIONS = 2
MAPS = VERSIONS + 1  # files of a rank that stay mapped: the versions that are held, and the one that it writes next
AT_ONCE = 4 << 20  # bytes that are digested in the event loop: a fraction of a millisecond


def shard_name(rank: int, step: int) -> str:
    """File name of a rank's state after a step."""
    return f"shard-{rank}-{step}"


def view_of(path: Path) -> memoryview:
    """A file's bytes, where they lie. They stay readable after the file has lost its name."""
    with path.open("rb") as file:
        return _mapped(file.fileno(), os.fstat(file.fileno()).st_size)


def _mapped(descriptor: int, size: int) -> memoryview:
    return memoryview(mmap.mmap(descriptor, size, prot=mmap.PROT_READ)) if size else memoryview(b"")


async def digest_of(view: memoryview) -> str:
    """xxh3 of a shard; of a large one in a thread, while the agent goes on."""
    if len(view) <= AT_ONCE:
        return xxhash.xxh3_64_hexdigest(view)
    return await asyncio.to_thread(xxhash.xxh3_64_hexdigest, view)


class ShardStore:
    """What is held on this host. Not for several threads.

    Of each rank the newest VERSIONS, and the newest that `pinned` tells is to be gone back to, until a later such one is held
    by all (when a newer version has followed it).
    """

    def __init__(self, folder: Path, pinned: Callable[[int], bool] = lambda _: False) -> None:
        self._pinned = pinned
        self.folder = folder / "held"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._held: dict[tuple[int, int], ShardInfo] = {}
        self._views: dict[
            tuple[int, int], memoryview
        ] = {}  # of those adopted here: what is checked once is also sent from there
        # Ranks write their shards into the same few files again and again: what is mapped stays so. By rank: (inode, bytes).
        self._maps: dict[int, deque[tuple[int, memoryview]]] = {}
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

    def view_file(self, path: Path, rank: int) -> memoryview:
        """The bytes of a file of a rank, mapped anew only where it is another file than its last ones. Raises OSError."""
        known = self._maps.setdefault(rank, deque(maxlen=MAPS))
        with path.open("rb") as file:
            state = os.fstat(file.fileno())
            for inode, view in known:  # a file that is mapped keeps its number
                if (inode, len(view)) == (state.st_ino, state.st_size):
                    return view
            view = _mapped(file.fileno(), state.st_size)
        known.append((state.st_ino, view))
        return view

    def adopt(self, path: Path, info: ShardInfo) -> str:
        """Takes a finished file in, after checking it. Returns why not, or nothing."""
        try:
            view = self.view_file(path, info.rank)
            return self.take(path, view, xxhash.xxh3_64_hexdigest(view), info)
        except OSError as error:
            return f"cannot be read: {error}"

    def take(self, path: Path, view: memoryview, xxh3: str, info: ShardInfo) -> str:
        """The same for a file that was read and digested. Raises OSError where it is gone."""
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

    async def verify(self, info: ShardInfo) -> bool:
        """Whether a held shard still is what was taken in; memory that is damaged is not handed on."""
        held = self._held.get((info.rank, info.step))
        if held is None:
            return False
        path = self.folder / shard_name(info.rank, info.step)
        # Its length first: a map must not be read past the end of its file.
        whole = path.exists() and path.stat().st_size == held.size
        if whole and await digest_of(self._views.get((info.rank, info.step)) or view_of(path)) == held.xxh3:
            return True
        if self._held.get((info.rank, info.step)) is held:
            self.discard(info.rank, info.step)
        return False

    def forget_after(self, step: int) -> None:
        """Drops what a new generation will do again: its steps may be decided otherwise (a skipped step, say)."""
        self._maps.clear()
        for key in [key for key in self._held if key[1] > step]:
            self._drop(key)

    def forget_ranks(self, first: int) -> None:
        """Drops what is held of this rank and all after it."""
        for key in [key for key in self._held if key[0] >= first]:
            self._drop(key)

    def _draft(self, info: ShardInfo) -> Path:
        """A file to write a copy into: the rank's oldest one if it is about to go, so that its memory is used again.

        Only one of the same size: a file that is still being sent from must not be cut.
        """
        draft = self.folder / f".{shard_name(info.rank, info.step)}.copy"
        steps = sorted(step for rank, step in self._held if rank == info.rank and step != info.step)
        spare = dispensable([*steps, info.step], self._pinned)
        if spare and steps[-1] < info.step:
            oldest = self.folder / shard_name(info.rank, spare[0])
            state = oldest.stat()
            if state.st_nlink == 1 and state.st_size == info.size:  # no process holds a link to it
                self._forget(info.rank, spare[0])
                oldest.replace(draft)
        return draft

    def _keep(self, draft: Path, info: ShardInfo) -> None:
        draft.replace(self.folder / shard_name(info.rank, info.step))
        self._held[info.rank, info.step] = info
        for step in dispensable([step for rank, step in self._held if rank == info.rank], self._pinned):
            self._drop((info.rank, step))

    def _drop(self, key: tuple[int, int]) -> None:
        self._forget(*key)
        (self.folder / shard_name(*key)).unlink(missing_ok=True)

    def _forget(self, rank: int, step: int) -> None:
        del self._held[rank, step]
        self._views.pop((rank, step), None)


def dispensable(steps: Iterable[int], pinned: Callable[[int], bool]) -> list[int]:
    """Which of a rank's versions may go, oldest first."""
    newest = sorted(steps, reverse=True)
    back = next((step for step in newest[1:] if pinned(step)), None)
    return sorted(step for step in newest[VERSIONS:] if step != back)


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


def remove_folder(folder: Path) -> None:
    """Removes an agent's folder from shared memory."""
    shutil.rmtree(folder, ignore_errors=True)
