"""A launcher and its ranks without torch: they take steps together over a socket. Told by a file what to do wrong.

python lockstep.py FOLDER [WORLD]           the launcher: starts its ranks through a shell, ends with the first that ends badly
FOLDER/rank-R                               `stick` until the file goes; `work N` for N times the work
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path


def launch(folder: Path, world: int) -> int:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "socket"))
    listener.listen(world)
    ranks: list[subprocess.Popen[bytes]] = []
    for rank in range(world):
        env = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        with (folder / f"rank{rank}.log").open("wb") as log:
            command = ["sh", "-c", f"{sys.executable} {__file__} --rank {folder}; exit $?"]
            ranks.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))
    threading.Thread(target=keep_step, args=(listener, world), daemon=True).start()
    while all(shell.poll() is None for shell in ranks):
        time.sleep(0.02)
    failed = any(shell.poll() for shell in ranks)
    for shell in ranks:
        if failed:
            shell.kill()
        shell.wait()
    return int(failed)


def keep_step(listener: socket.socket, world: int) -> None:
    peers = [listener.accept()[0] for _ in range(world)]
    while all(peer.recv(1) for peer in peers):
        for peer in peers:
            peer.sendall(b"x")
    for peer in peers:
        peer.close()


def all_reduce(peers: socket.socket) -> None:
    peers.sendall(b"x")
    if not peers.recv(1):
        raise RuntimeError("Connection closed by peer")


def hold_up(order: Path) -> None:
    while order.exists():
        time.sleep(0.3)


def rank(folder: Path) -> None:
    peers = socket.socket(socket.AF_UNIX)
    peers.connect(str(folder / "socket"))
    order = folder / f"rank-{os.environ['RANK']}"
    # A child with the rank's environment, as a loader's worker is; it ends with its parent's pipe.
    worker = subprocess.Popen([sys.executable, "-S", "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    step = 0
    while worker.poll() is None:
        said = order.read_text().split() if order.exists() else []
        if said[:1] == ["stick"]:
            hold_up(order)
        sum(range(20_000 * (int(said[1]) if said[:1] == ["work"] else 1)))
        time.sleep(0.005)
        all_reduce(peers)
        step += 1
        if step % 10 == 0:
            print(f"step {step}", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--rank":
        rank(Path(sys.argv[2]))
    else:
        sys.exit(launch(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 4))
