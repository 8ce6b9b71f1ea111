"""What strangers do to a port or socket. `python -m benchmarks.strangers ATTACK TARGET,TARGET COUNT` does it to
all of them at once, and says how often.

No torch, nothing of ninthsky: many of these processes start at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import socket
import struct
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import zmq

FRAMES_PER_CONNECTION = 1_000
HOLD_SECONDS = 5.0


def garbage(port: int, count: int, seed: int = 0) -> int:
    """Frames with sound lengths and random bodies, without a handshake, a thousand in each connection."""
    chance, sent = random.Random(seed), 0
    while sent < count:
        bodies = (chance.randbytes(chance.randrange(64)) for _ in range(min(FRAMES_PER_CONNECTION, count - sent)))
        frames = b"".join(bytes([chance.randrange(4), len(body)]) + body for body in bodies)
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5.0) as line:
            line.sendall(frames)
        sent += min(FRAMES_PER_CONNECTION, count - sent)
    return sent


def keyless(port: int, count: int, seed: int = 0) -> int:
    """A proper 0MQ peer that knows no key. Returns the frames that its connection took."""
    context = zmq.Context()
    sent = 0
    for kind in (zmq.PUSH, zmq.DEALER):
        line = context.socket(kind)
        for option, value in ((zmq.IMMEDIATE, 1), (zmq.SNDTIMEO, 2_000), (zmq.LINGER, 0), (zmq.RECONNECT_IVL, 20)):
            line.setsockopt(option, value)
        line.connect(f"tcp://127.0.0.1:{port}")
        with contextlib.suppress(zmq.Again):
            for number in range(count // 2):
                line.send_multipart([number.to_bytes(16, "big"), b"\x93", b"x" * 32])
                sent += 1
        line.close()
    context.destroy(linger=0)
    return sent


def wrong_key(port: int, count: int, seed: int = 0) -> int:
    """CURVE peers whose keys nobody knows: they know the server's, which is no secret among hosts."""
    server = Path(os.environ["HOSTILE_SERVER"]).read_text() if "HOSTILE_SERVER" in os.environ else ""
    context = zmq.Context()
    for _ in range(count):
        public, secret = zmq.curve_keypair()
        line = context.socket(zmq.DEALER)
        line.curve_publickey, line.curve_secretkey = public, secret
        line.curve_serverkey = server.encode() or public
        line.connect(f"tcp://127.0.0.1:{port}")
        time.sleep(0.002)
        line.close(linger=0)
    context.destroy(linger=0)
    return count


def oversized(port: int, count: int, seed: int = 0) -> int:
    """A greeting as it should be, then a frame that announces a petabyte."""
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32)
    for _ in range(count):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5.0) as line:
            line.sendall(greeting + b"\x06" + struct.pack(">Q", 1 << 50) + bytes(4096))
    return count


def replay(port: int, count: int, seed: int = 0) -> int:
    """The bytes of a real host's session, recorded before, sent again."""
    recorded = Path(os.environ["HOSTILE_RECORDED"]).read_bytes()
    for _ in range(count):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5.0) as line:
            line.sendall(recorded)
            line.settimeout(0.05)
            line.recv(4096)
    return count


def loris(port: int, count: int, seed: int = 0) -> int:
    """Connections that say next to nothing and stay."""
    lines = []
    for _ in range(count):
        with contextlib.suppress(OSError):
            lines.append(socket.create_connection(("127.0.0.1", port), 1.0))
            lines[-1].sendall(b"\xff\x00\x00")
    time.sleep(HOLD_SECONDS)
    for line in lines:
        line.close()
    return len(lines)


def unix(path: str, count: int, seed: int = 0) -> int:
    """Garbage and silence on an agent's socket, by a process of the same user that it did not start."""
    lines = []
    for number in range(count):
        line = socket.socket(socket.AF_UNIX)
        line.settimeout(1.0)
        with contextlib.suppress(OSError):
            line.connect(path)
            if number % 2:
                line.sendall(os.urandom(512))
            lines.append(line)
    time.sleep(HOLD_SECONDS)
    for line in lines:
        line.close()
    return len(lines)


ATTACKS: dict[str, Callable[[Any, int, int], int]] = {
    "garbage": garbage, "keyless": keyless, "wrong_key": wrong_key, "oversized": oversized, "replay": replay, "loris": loris,
    "unix": unix,
}  # fmt: skip


def main() -> None:
    name, targets, count = sys.argv[1:]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    parsed = [target if name == "unix" else int(target) for target in targets.split(",")]
    with ThreadPoolExecutor(len(parsed)) as pool:
        done = pool.map(lambda each: ATTACKS[name](each[1], int(count), each[0]), enumerate(parsed))
        print(json.dumps({"done": sum(done)}))


if __name__ == "__main__":
    main()
