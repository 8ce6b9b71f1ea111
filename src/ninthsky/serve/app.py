"""The HTTP side: who may ask, how much at once, and every mistake as a JSON error."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import secrets
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ninthsky.serve.engine import Engine, Finish, Sampling
from ninthsky.serve.wire import ChatRequest, Reply, TextRequest, WireError, parse

log = logging.getLogger("ninthsky.serve")

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Limits:
    """What one person may ask of the server."""

    body_bytes: int = 1 << 20
    body_seconds: float = 20.0  # to send the body in
    prompt_tokens: int = 4_096
    answer_tokens: int = 1_024
    default_tokens: int = 256  # when a request names no number
    waiting: int = 16  # requests at once; one is worked on, the others wait


def create_app(engine: Engine, model: str, key: str | None, limits: Limits | None = None) -> Starlette:
    """The application. Without `key` everyone may ask who reaches it under a loopback name."""
    return Server(engine, model, key, limits or Limits()).app()


class Server:
    """Engine, key and limits behind the routes."""

    def __init__(self, engine: Engine, model: str, key: str | None, limits: Limits) -> None:
        self.engine, self.model, self.key, self.limits = engine, model, key, limits
        self.created = int(time.time())
        self.busy = 0

    def app(self) -> Starlette:
        routes = [
            Route("/health", self._health, methods=["GET"]),
            Route("/v1/models", self._guarded(self._models), methods=["GET"]),
            Route("/v1/models/{name:path}", self._guarded(self._one_model), methods=["GET"]),
            Route("/v1/completions", self._guarded(self._text), methods=["POST"]),
            Route("/v1/chat/completions", self._guarded(self._chat), methods=["POST"]),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: _http_error})

    # -- who may ask ----------------------------------------------------------------------------------------------------

    def _guarded(self, handler: Handler) -> Handler:
        """The handler behind the key; whatever goes wrong in it becomes a JSON error."""

        async def guarded(request: Request) -> Response:
            try:
                self._admit(request)
                return await handler(request)
            except WireError as error:
                headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}}.get(error.status)
                return JSONResponse(error.body(), error.status, headers)
            except ClientDisconnect:
                return Response(status_code=499)  # nobody is left to read it
            except Exception:
                number = secrets.token_hex(4)
                log.exception("request %s failed", number)
                fault = WireError(500, f"the server failed; its log has the cause under {number}", "internal_error")
                return JSONResponse(fault.body(), 500)

        return guarded

    def _admit(self, request: Request) -> None:
        if self.key is None:
            # A web page must not reach a server without a key through a name of its own that points to this machine.
            if _host_name(request.headers.get("host", "")) not in ("localhost", "127.0.0.1", "[::1]"):
                raise WireError(403, "without a key only loopback names are answered", "forbidden_host")
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self.key.encode()):
            raise WireError(
                401, "a key is needed: Authorization: Bearer KEY (printed when the server started)", "invalid_api_key"
            )

    # -- what is asked --------------------------------------------------------------------------------------------------

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def _one_model(self, request: Request) -> Response:
        self._is_served(request.path_params["name"])
        return JSONResponse(self._card())

    def _card(self) -> dict[str, object]:
        return {"id": self.model, "object": "model", "created": self.created, "owned_by": "ninthsky"}

    async def _text(self, request: Request) -> Response:
        asked = parse(await self._body(request), TextRequest)
        self._is_served(asked.model)
        sampling = asked.sampling(self.limits.default_tokens, self.limits.answer_tokens)
        ids = self.engine.text_ids(asked.text())
        return await self._answer(ids, sampling, chat=False, stream=bool(asked.stream), count=_counts(asked))

    async def _chat(self, request: Request) -> Response:
        asked = parse(await self._body(request), ChatRequest)
        self._is_served(asked.model)
        sampling = asked.sampling(self.limits.default_tokens, self.limits.answer_tokens)
        ids = self.engine.chat_ids(asked.turns())
        return await self._answer(ids, sampling, chat=True, stream=bool(asked.stream), count=_counts(asked))

    def _is_served(self, name: str) -> None:
        if name != self.model:
            raise WireError(404, f"no model {name!r} here; this server has {self.model!r}", "model_not_found", "model")

    async def _body(self, request: Request) -> bytes:
        """The body, refused as soon as it is too long, too slow or no JSON by its own word."""
        # Also keeps web pages out: a browser asks before it sends this type elsewhere, and gets no leave.
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise WireError(415, "send Content-Type: application/json", "unsupported_media_type")
        most = self.limits.body_bytes
        too_long = WireError(413, f"the body is longer than {most:,} bytes", "body_too_large")
        declared = request.headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > most:
            raise too_long
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                async for block in request.stream():
                    body += block
                    if len(body) > most:
                        raise too_long
        except TimeoutError:
            raise WireError(408, f"the body did not arrive in {self.limits.body_seconds:g} s", "body_too_slow") from None
        return bytes(body)

    # -- what is answered -----------------------------------------------------------------------------------------------

    async def _answer(self, ids: list[int], sampling: Sampling, *, chat: bool, stream: bool, count: bool) -> Response:
        if len(ids) > self.limits.prompt_tokens:
            text = f"the prompt has {len(ids):,} tokens, at most {self.limits.prompt_tokens:,} are read"
            raise WireError(400, text, "context_length_exceeded", "messages" if chat else "prompt")
        if self.busy >= self.limits.waiting:
            raise WireError(429, f"{self.busy} requests wait already; ask again later", "rate_limit_exceeded")
        reply = Reply(chat, secrets.token_hex(12), int(time.time()), self.model)
        if stream:
            return StreamingResponse(self._events(ids, sampling, reply, count), media_type="text/event-stream")
        self.busy += 1
        try:
            answer = await anyio.to_thread.run_sync(self.engine.answer, ids, sampling)
        finally:
            self.busy -= 1
        return JSONResponse(reply.whole(answer))

    async def _events(self, ids: list[int], sampling: Sampling, reply: Reply, count: bool) -> AsyncIterator[bytes]:
        """Server-sent events. The answer is made at its own speed: a slow reader holds up nobody else."""
        loop, gone = asyncio.get_running_loop(), threading.Event()
        queue: asyncio.Queue[tuple[str, int, Finish | None] | Exception] = asyncio.Queue()

        def produce() -> None:
            try:
                for piece in self.engine.pieces(ids, sampling):
                    loop.call_soon_threadsafe(queue.put_nowait, piece)
                    if gone.is_set():
                        return
            except Exception as error:
                loop.call_soon_threadsafe(queue.put_nowait, error)

        self.busy += 1
        worker = asyncio.ensure_future(anyio.to_thread.run_sync(produce))
        try:
            first, made = True, 0
            while True:
                item = await queue.get()
                if isinstance(item, Exception):
                    log.error("a stream failed", exc_info=item)
                    yield _event(WireError(500, "the server failed in the middle of an answer", "internal_error").body())
                    return
                text, made, finish = item
                yield _event(reply.piece(text, finish, first))
                first = False
                if finish is not None:
                    break
            if count:
                yield _event(reply.last(len(ids), made))
            yield b"data: [DONE]\n\n"
        finally:
            gone.set()
            # Shielded: when the reader left, this is being cancelled, and the place is free only once the model is.
            with anyio.CancelScope(shield=True):
                await worker
            self.busy -= 1


def _event(value: dict[str, object]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def _counts(asked: TextRequest | ChatRequest) -> bool:
    return asked.stream_options is not None and asked.stream_options.include_usage


def _host_name(header: str) -> str:
    """The name in a Host header, without the port."""
    return header[: header.index("]") + 1] if header.startswith("[") and "]" in header else header.partition(":")[0].lower()


async def _http_error(request: Request, error: Exception) -> Response:
    """Unknown paths and methods, in the same shape as every other error."""
    assert isinstance(error, HTTPException)
    text = {404: f"no such address: {request.url.path}", 405: f"{request.method} is not served here"}.get(
        error.status_code, error.detail
    )
    return JSONResponse(WireError(error.status_code, text, "not_found").body(), error.status_code, error.headers)
