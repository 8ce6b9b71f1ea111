"""What a shard's copy on another host costs: processor seconds per MB of sender and receiver, each a process of its own.

The path is the agents' own (`guard.shards`, `guard.wire`): check, encrypt, send, decrypt, check, write, acknowledge. Processor
time, so a busy machine disturbs it little.
"""

from __future__ import annotations

import asyncio
import multiprocessing as mp
import os
import shutil
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import xxhash
import zmq.asyncio

from ninthsky.guard.agent.shards import ShardExchange
from ninthsky.guard.agent.store import VERSIONS, ShardStore, shard_name
from ninthsky.guard.keys import forge, load_keys
from ninthsky.guard.protocol import Peer, ShardInfo
from ninthsky.guard.wire import keep_memory

HOSTS = ("a", "b")  # a sends, b receives
WARM = 5  # shards that are not counted


def shipping_cost(size: int, shards: int = 60) -> dict[str, float]:
    """`ship_sender_ms_per_mb`, `ship_receiver_ms_per_mb` for shards of `size` bytes, one after the other."""
    folder = Path(tempfile.mkdtemp(prefix="n9-shipping-", dir="/dev/shm"))
    forge(folder / "keys", list(HOSTS))
    ends, processes = {}, []
    for name in HOSTS:
        here, there = mp.Pipe()
        ends[name] = here
        processes.append(mp.get_context("fork").Process(target=_host, args=(name, folder, there, size, shards)))
    try:
        for process in processes:
            process.start()
        ports = {name: ends[name].recv() for name in HOSTS}
        for end in ends.values():
            end.send(ports)
        sender = ends["a"].recv()
        ends["b"].send("done")
        receiver = ends["b"].recv()
    finally:
        for process in processes:
            process.join(10)
            process.kill()
        shutil.rmtree(folder)
    return {"ship_sender_ms_per_mb": sender, "ship_receiver_ms_per_mb": receiver}


def _host(name: str, folder: Path, end: Connection, size: int, shards: int) -> None:
    keep_memory()
    asyncio.run(_work(name, folder, end, size, shards))


async def _work(name: str, folder: Path, end: Connection, size: int, shards: int) -> None:
    loop, held = asyncio.get_running_loop(), asyncio.Event()
    context, store = zmq.asyncio.Context(), ShardStore(folder / name)
    keys = load_keys(folder / "keys" / f"{name}.json")
    exchange = ShardExchange(context, keys, store, "127.0.0.1", lambda _: held.set())
    serving = asyncio.ensure_future(exchange.serve())
    end.send(exchange.listener.port)
    ports = await loop.run_in_executor(None, end.recv)
    exchange.set_ring([Peer(host, "127.0.0.1", ports[host]) for host in HOSTS])
    begin = time.process_time()
    if name == "a":
        used = 0.0
        # Made beforehand: what a process allocates and frees beside its messages changes what messages cost it.
        contents = [os.urandom(size) for _ in range(VERSIONS + 1)]
        digests = [xxhash.xxh3_64_hexdigest(content) for content in contents]
        for step in range(WARM + shards):
            which = step % len(contents)
            path, info = folder / shard_name(0, step), ShardInfo(0, step, size, digests[which])
            _write(path, contents[which], folder / shard_name(0, step - VERSIONS - 1))
            begin = time.process_time()
            assert store.adopt(path, info) == ""
            held.clear()
            exchange.ship(info)
            await held.wait()
            used += (time.process_time() - begin) if step >= WARM else 0.0
        end.send(1e3 * used / (shards * size / 1e6))
    else:
        await loop.run_in_executor(None, end.recv)
        end.send(1e3 * (time.process_time() - begin) / ((WARM + shards) * size / 1e6))
    serving.cancel()
    exchange.close()
    context.destroy(linger=0)


def _write(path: Path, content: bytes, oldest: Path) -> None:
    """As a rank does (`train/state/shards.py`): into the file of the oldest version, which the agent has let go of by now."""
    if oldest.exists():
        oldest.replace(path)
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(content)


if __name__ == "__main__":
    print(shipping_cost(3_400_000))
