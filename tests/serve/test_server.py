"""A real server process on a real socket, asked by a real client."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from ninthsky.serve.engine import Engine, Sampling, Turn

pytestmark = pytest.mark.slow


def start(export: Path, *options: str) -> tuple[subprocess.Popen[bytes], dict[str, str]]:
    command = [sys.executable, "-m", "ninthsky", "serve", str(export), "--port", "0", "--json", "--until-eof", *options]
    environment = {key: value for key, value in os.environ.items() if key != "N9_API_KEY"}
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    assert server.stdout is not None
    return server, json.loads(server.stdout.readline())


def end(server: subprocess.Popen[bytes]) -> None:
    server.kill()
    server.wait()
    assert server.stdin is not None and server.stdout is not None
    server.stdin.close()
    server.stdout.close()


@pytest.fixture(scope="module")
def client(export: Path) -> Iterator[httpx.Client]:
    server, told = start(export)
    headers = {"Authorization": f"Bearer {told['key']}"}
    try:
        with httpx.Client(base_url=told["url"], headers=headers, timeout=60, trust_env=False) as opened:
            yield opened
    finally:
        end(server)


def question(**changes: object) -> dict[str, object]:
    return {"model": "run0", "messages": [{"role": "user", "content": "the fox"}], "max_tokens": 24, **changes}


@pytest.fixture(scope="module")
def model(client: httpx.Client) -> str:
    return str(client.get("models").json()["data"][0]["id"])


def test_it_listens_on_loopback_and_answers_as_the_model_does(client: httpx.Client, model: str, engine: Engine) -> None:
    assert client.base_url.host == "127.0.0.1"
    own = engine.answer(engine.chat_ids([Turn("user", "the fox")]), Sampling(24))
    reply = client.post("chat/completions", json=question(model=model))
    assert reply.status_code == 200 and reply.json()["choices"][0]["message"]["content"] == own.text


def test_a_stream_is_the_same_answer_in_pieces(client: httpx.Client, model: str, engine: Engine) -> None:
    own = engine.answer(engine.chat_ids([Turn("user", "the fox")]), Sampling(24, 0.9, 5))
    asked = question(model=model, stream=True, temperature=0.9, seed=5, stream_options={"include_usage": True})
    with client.stream("POST", "chat/completions", json=asked) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in reply.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]"
    pieces = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert pieces[0]["choices"][0]["delta"]["role"] == "assistant" and len({piece["id"] for piece in pieces}) == 1
    assert "".join(piece["choices"][0]["delta"]["content"] for piece in pieces[:-1]) == own.text
    assert pieces[-2]["choices"][0]["finish_reason"] == own.finish
    assert pieces[-1]["choices"] == [] and pieces[-1]["usage"]["completion_tokens"] == own.answer_tokens


def test_readers_that_leave_hold_up_nobody(client: httpx.Client, model: str) -> None:
    for _ in range(24):  # more than may wait at once
        with client.stream(
            "POST", "completions", json={"model": model, "prompt": "the", "max_tokens": 900, "stream": True}
        ) as reply:
            assert reply.status_code == 200
            next(reply.iter_lines())
    for _ in range(100):
        if client.post("chat/completions", json=question(model=model)).status_code == 200:
            return
        time.sleep(0.1)
    pytest.fail("places were not freed")


def test_a_wrong_key_over_the_wire(client: httpx.Client, model: str) -> None:
    reply = httpx.post(
        f"{client.base_url}chat/completions",
        json=question(model=model),
        headers={"Authorization": "Bearer no"},
        trust_env=False,
    )
    assert reply.status_code == 401 and reply.json()["error"]["code"] == "invalid_api_key"


def test_an_oversized_body_over_the_wire(client: httpx.Client, model: str) -> None:
    reply = client.post("completions", json={"model": model, "prompt": "x" * (2 << 20)})
    assert reply.status_code == 413 and reply.json()["error"]["code"] == "body_too_large"


def test_it_ends_with_whoever_started_it(export: Path) -> None:
    server, told = start(export, "--no-auth")
    try:
        assert told["key"] is None and httpx.get(f"{told['url']}/models", trust_env=False).status_code == 200
        assert server.stdin is not None
        server.stdin.close()
        assert server.wait(30) == 0
    finally:
        server.kill()


def test_ctrl_c_ends_it_without_a_traceback(export: Path) -> None:
    command = [sys.executable, "-m", "ninthsky", "serve", str(export), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert server.stdout is not None
    printed = [server.stdout.readline() for _ in range(3)]
    server.send_signal(signal.SIGINT)
    out, errors = server.communicate(timeout=30)
    assert b"Traceback" not in errors, errors
    assert printed[1].startswith(b"http://127.0.0.1:") and printed[2].startswith(b"key (shown once): ")
    assert out == b"" and server.returncode == 0
