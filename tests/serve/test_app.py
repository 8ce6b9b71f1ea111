"""Every request that can be wrong, in process: a status, a JSON error in OpenAI's shape, and never a traceback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ninthsky.serve.app import Limits, create_app
from ninthsky.serve.engine import Engine, Sampling, Turn
from ninthsky.serve.wire import ChatRequest, TextRequest, WireError, parse

KEY = "key-for-these-tests-only"
LIMITS = Limits(body_bytes=4_000, body_seconds=0.2, prompt_tokens=100, answer_tokens=16, default_tokens=4, waiting=2)
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "the fox"}], "max_tokens": 6}


def send(
    engine: Engine,
    method: str,
    path: str,
    *,
    key: str | None = KEY,
    server_key: str | None = KEY,
    host: str = "127.0.0.1",
    **options: Any,
) -> httpx.Response:
    async def go() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(engine, "tiny", server_key, LIMITS), raise_app_exceptions=True)
        headers = {**({"Authorization": f"Bearer {key}"} if key else {}), **options.pop("headers", {})}
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}", trust_env=False) as client:
            return await client.request(method, path, headers=headers, **options)

    return asyncio.run(go())


def refused(reply: httpx.Response, status: int, code: str) -> str:
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["code"] == code and error["message"]
    assert "Traceback" not in reply.text
    return str(error["message"])


def test_models(engine: Engine) -> None:
    assert [model["id"] for model in send(engine, "GET", "/v1/models").json()["data"]] == ["tiny"]
    assert send(engine, "GET", "/v1/models/tiny").json()["object"] == "model"
    refused(send(engine, "GET", "/v1/models/gpt-4"), 404, "model_not_found")
    assert send(engine, "GET", "/health", key=None).json() == {"status": "ok"}


def test_a_chat_is_the_engines_answer(engine: Engine) -> None:
    reply = send(engine, "POST", "/v1/chat/completions", json=CHAT).json()
    own = engine.answer(engine.chat_ids([Turn("user", "the fox")]), Sampling(6))
    assert reply["object"] == "chat.completion" and reply["model"] == "tiny"
    assert reply["choices"][0]["message"] == {"role": "assistant", "content": own.text}
    assert reply["choices"][0]["finish_reason"] == own.finish
    assert reply["usage"]["total_tokens"] == own.prompt_tokens + own.answer_tokens


def test_a_completion_and_parts_and_defaults(engine: Engine) -> None:
    reply = send(engine, "POST", "/v1/completions", json={"model": "tiny", "prompt": ["the fox"]}).json()
    assert (
        reply["object"] == "text_completion"
        and reply["choices"][0]["text"] == engine.answer(engine.text_ids("the fox"), Sampling(4)).text
    )
    parts = {**CHAT, "messages": [{"role": "user", "content": [{"type": "text", "text": "the fox"}]}]}
    whole = send(engine, "POST", "/v1/chat/completions", json=CHAT).json()["choices"]
    assert send(engine, "POST", "/v1/chat/completions", json=parts).json()["choices"] == whole


@pytest.mark.parametrize("key", [None, "", "wrong", KEY + "x", KEY[:-1], "schlüssel"])
def test_a_wrong_key_is_refused_everywhere(engine: Engine, key: str | None) -> None:
    headers = {"Authorization": f"Bearer {key}".encode()} if key is not None else {}
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/completions"), ("POST", "/v1/chat/completions")):
        reply = send(engine, method, path, key=None, headers=headers, json=CHAT)
        refused(reply, 401, "invalid_api_key")
        assert reply.headers["www-authenticate"] == "Bearer" and KEY not in reply.text


def test_without_a_key_only_loopback_names_are_answered(engine: Engine) -> None:
    for host in ("127.0.0.1", "localhost:99", "[::1]:99"):
        assert send(engine, "GET", "/v1/models", key=None, server_key=None, host=host).status_code == 200
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80"):
        refused(send(engine, "GET", "/v1/models", key=None, server_key=None, host=host), 403, "forbidden_host")


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"model": "gpt-4"}, 404, "model_not_found"),
        ({"max_tokens": 0}, 400, "integer_out_of_range"),
        ({"max_tokens": 17}, 400, "integer_out_of_range"),
        ({"max_completion_tokens": -1}, 400, "integer_out_of_range"),
        ({"max_tokens": "many"}, 400, "invalid_type"),
        ({"max_tokens": 1.5}, 400, "invalid_type"),
        ({"temperature": -1}, 400, "decimal_out_of_range"),
        ({"temperature": 2.1}, 400, "decimal_out_of_range"),
        ({"seed": 1 << 50}, 400, "integer_out_of_range"),
        ({"stop": ["a"] * 5}, 400, "invalid_stop"),
        ({"stop": ""}, 400, "invalid_stop"),
        ({"n": 2}, 400, "unsupported_parameter"),
        ({"tools": [{"type": "function"}]}, 400, "unsupported_parameter"),
        ({"logprobs": True}, 400, "unsupported_parameter"),
        ({"top_p": 0.5}, 400, "unsupported_parameter"),
        ({"messages": []}, 400, "invalid_messages"),
        ({"messages": [{"role": "assistant", "content": "I"}]}, 400, "invalid_messages"),
        ({"messages": [{"role": "wizard", "content": "I"}]}, 400, "invalid_type"),
        ({"messages": [{"role": "user"}]}, 400, "invalid_type"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "unsupported_value"),
        ({"messages": [{"role": "user", "content": "fox " * 400}]}, 400, "context_length_exceeded"),
        ({"messages": [{"role": "user", "content": "x" * 5_000}]}, 413, "body_too_large"),
        ({"stream": "yes"}, 400, "invalid_type"),
    ],
)  # fmt: skip
def test_requests_that_cannot_be_met(engine: Engine, change: dict[str, Any], status: int, code: str) -> None:
    refused(send(engine, "POST", "/v1/chat/completions", json={**CHAT, **change}), status, code)


def test_completions_take_one_prompt(engine: Engine) -> None:
    refused(send(engine, "POST", "/v1/completions", json={"model": "tiny", "prompt": ["a", "b"]}), 400, "unsupported_value")
    refused(send(engine, "POST", "/v1/completions", json={"model": "tiny"}), 400, "invalid_type")
    refused(
        send(engine, "POST", "/v1/completions", json={"model": "tiny", "prompt": "fox " * 400}), 400, "context_length_exceeded"
    )


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"\xff\xfe{}", b"{}{}", b"[" * 3_000, b'{"model": "\xed\xa0\x80"}']
)
def test_bodies_that_are_no_json_object(engine: Engine, body: bytes) -> None:
    reply = send(engine, "POST", "/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    refused(reply, 400, "invalid_json")


def test_a_body_of_another_type_is_refused(engine: Engine) -> None:
    """A web page can send text/plain anywhere without asking; JSON it cannot."""
    reply = send(engine, "POST", "/v1/chat/completions", content=json.dumps(CHAT), headers={"Content-Type": "text/plain"})
    refused(reply, 415, "unsupported_media_type")


def test_a_body_without_a_length_is_cut_off(engine: Engine) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 1_000

    reply = send(engine, "POST", "/v1/completions", content=endless(), headers={"Content-Type": "application/json"})
    refused(reply, 413, "body_too_large")


def test_a_body_that_trickles_is_given_up(engine: Engine) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(60)

    reply = send(engine, "POST", "/v1/completions", content=slow(), headers={"Content-Type": "application/json"})
    refused(reply, 408, "body_too_slow")


def test_unknown_addresses_and_methods(engine: Engine) -> None:
    refused(send(engine, "GET", "/v1/nothing"), 404, "not_found")
    refused(send(engine, "DELETE", "/v1/models"), 405, "not_found")
    refused(send(engine, "GET", "/v1/chat/completions"), 405, "not_found")


def test_a_failing_engine_is_an_error_without_its_inside(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret path /home/someone")

    monkeypatch.setattr(engine, "answer", broken)
    assert "secret" not in refused(send(engine, "POST", "/v1/chat/completions", json=CHAT), 500, "internal_error")


def test_too_many_at_once_are_told_to_come_again(engine: Engine) -> None:
    async def go() -> list[int]:
        transport = httpx.ASGITransport(create_app(engine, "tiny", KEY, LIMITS))
        async with httpx.AsyncClient(
            transport=transport, base_url="http://a", headers={"Authorization": f"Bearer {KEY}"}
        ) as client:
            replies = await asyncio.gather(*(client.post("/v1/chat/completions", json=CHAT) for _ in range(12)))
            after = await client.post("/v1/chat/completions", json=CHAT)
        return [reply.status_code for reply in [*replies, after]]

    *statuses, after = asyncio.run(go())
    assert set(statuses) == {200, 429} and statuses.count(200) >= 2 and after == 200


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(
    ["model", "messages", "prompt", "max_tokens", "temperature", "seed", "stop", "stream", "stream_options", "n", "role"]
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(keys, json_values) | json_values, st.sampled_from([ChatRequest, TextRequest]))
def test_any_json_is_a_request_or_a_wire_error(value: Any, kind: type[ChatRequest] | type[TextRequest]) -> None:
    try:
        asked = parse(json.dumps(value).encode(), kind)
        asked.sampling(4, 16)
        _ = asked.turns() if isinstance(asked, ChatRequest) else asked.text()
    except WireError as error:
        assert 400 <= error.status < 500 and error.message


@given(st.binary(max_size=64))
def test_any_bytes_are_a_wire_error(body: bytes) -> None:
    with pytest.raises(WireError):
        parse(body, ChatRequest)
