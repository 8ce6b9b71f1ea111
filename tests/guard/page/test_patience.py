"""Connections that do not come to the point, at a real server."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from ninthsky.address import bind
from ninthsky.guard.page import patience


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Of a server that waits 0.3 s for a head, and for 4 of them."""
    monkeypatch.setattr(patience, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(patience, "HEADS", 4)
    app = Starlette(routes=[Route("/", lambda request: PlainTextResponse("here"))])
    server = uvicorn.Server(uvicorn.Config(app, http=patience.Impatient, ws="none", lifespan="off", log_level="error"))
    listener = bind("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join(30.0)


def connect(port: int, said: bytes = b"GET / HTTP/1.1\r\nX: ") -> socket.socket:
    line = socket.create_connection(("127.0.0.1", port), timeout=30.0)
    line.sendall(said)
    return line


def is_cut(line: socket.socket) -> bool:
    with suppress(ConnectionError):
        return line.recv(1) == b""
    return True


def test_half_a_head_is_cut_off_also_after_an_answer(port: int) -> None:
    with connect(port) as silent, connect(port, b"") as dumb:
        assert is_cut(silent) and is_cut(dumb)
    with connect(port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") as line:
        answer = b""
        while not answer.endswith(b"here"):
            answer += line.recv(4096)
        line.sendall(b"GET / HT")
        assert is_cut(line)


def test_of_too_many_the_oldest_goes_and_who_asks_is_answered(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "HEAD_SECONDS", 600.0)
    silent = [connect(port) for _ in range(12)]
    with connect(port, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") as line:
        assert line.recv(12) == b"HTTP/1.1 200"
    assert all(is_cut(line) for line in silent[:8])
    deadline = time.monotonic() + 30.0
    while len(patience.Impatient.waiting) > 4:
        assert time.monotonic() < deadline
    for line in silent:
        line.close()
