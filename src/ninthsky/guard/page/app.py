"""The HTTP side of the page: who may look, who may act, how much at once. Nothing here can reach the job but its files."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from urllib.parse import parse_qs, urlsplit

import msgspec
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from ninthsky.guard.out.metrics import CONTENT_TYPE, metrics_text
from ninthsky.guard.page.acts import Acts, What
from ninthsky.guard.page.folder import JobFolder
from ninthsky.guard.page.login import SESSION_SECONDS, Logins, clean_name
from ninthsky.guard.page.view import View

log = logging.getLogger("ninthsky.guard.page")

COOKIE = "n9_session"
LOOK_SECONDS = 1.0
BEHIND = 16  # differences that a reader may be behind; then it is let go, and comes again with a snapshot
KEEP_ALIVE_SECONDS = 15.0
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # no-referrer would make the Origin of our own login form null
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
FAULT_ID = re.compile(r"F-\d{4,9}")


@dataclass(frozen=True)
class Rules:
    """Bounds and permissions. `names`: what the Host header may say besides loopback names, so that no web page of a stranger
    reaches this one through a name of its own."""

    names: frozenset[str] = frozenset()
    look_freely: bool = False  # reading needs no login; acting always does
    secure: bool = False  # the cookie travels over TLS only
    metrics_token: str | None = None  # /metrics asks for it; without one it is open
    readers: int = 32
    body_bytes: int = 4096
    body_seconds: float = 5.0


class Refusal(Exception):
    """Answered as a status and a sentence."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


class Page:
    """One job's page. `step` is called once a second by its own task, by tests at will."""

    def __init__(self, job: JobFolder, rules: Rules) -> None:
        self.rules = rules
        self.acts = Acts(job.folder)
        self.logins = Logins(job.folder / "page" / "login")
        self.view = View(job, self.acts)
        self._readers: set[asyncio.Queue[bytes | None]] = set()
        self.sent_bytes = 0  # of differences, to one reader

    def app(self) -> Starlette:
        """The routes, and the task that looks at the folder."""

        @asynccontextmanager
        async def looking(app: Starlette) -> AsyncIterator[None]:
            task = asyncio.create_task(self._look())
            try:
                yield
            finally:
                task.cancel()
                self._send(None)

        routes = [
            Route("/", self._checked(self._home)),
            Route("/page.js", self._checked(_static("page.js", "text/javascript"))),
            Route("/page.css", self._checked(_static("page.css", "text/css"))),
            Route("/favicon.ico", self._checked(_nothing)),
            Route("/login", self._checked(self._login_form)),
            Route("/login", self._checked(self._login), methods=["POST"]),
            Route("/logout", self._checked(self._logout), methods=["POST"]),
            Route("/events", self._checked(self._events)),
            Route("/act", self._checked(self._act), methods=["POST"]),
            Route("/metrics", self._checked(self._metrics)),
        ]
        return Starlette(routes=routes, lifespan=looking)

    # -- differences ----------------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        while True:
            try:
                self.step()
            except Exception:  # a folder that is just being made anew must not end the page: it is told, and looked at again
                log.exception("looking at %s failed", self.view.job.folder)
            await asyncio.sleep(LOOK_SECONDS)

    def step(self) -> None:
        """Reads what is new and tells every reader."""
        delta = self.view.step()
        if delta.get("anew"):
            self.view = View(self.view.job, self.acts)
            self._send(None)  # readers come again, for a snapshot
        elif delta:
            self._send(event_bytes("delta", delta))

    def _send(self, data: bytes | None) -> None:
        self.sent_bytes += len(data or b"")
        for reader in list(self._readers):
            if data is not None and not reader.full():
                reader.put_nowait(data)
                continue
            self._readers.discard(reader)
            while not reader.empty():
                reader.get_nowait()
            reader.put_nowait(None)

    async def _events(self, request: Request) -> Response:
        self._must_look(request)
        if len(self._readers) >= self.rules.readers:
            raise Refusal(503, f"{self.rules.readers} readers are here already")
        reader: asyncio.Queue[bytes | None] = asyncio.Queue(BEHIND)
        reader.put_nowait(event_bytes("snapshot", {**self.view.snapshot(), "who": self._who(request)}))
        self._readers.add(reader)

        async def stream() -> AsyncIterator[bytes]:
            try:
                while True:
                    try:
                        data = await asyncio.wait_for(reader.get(), KEEP_ALIVE_SECONDS)
                    except TimeoutError:
                        data = b": still here\n\n"
                    if data is None:
                        return
                    yield data
            finally:
                self._readers.discard(reader)

        return StreamingResponse(stream(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})

    # -- who --------------------------------------------------------------------------------------------------------------

    def _checked(self, handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def checked(request: Request) -> Response:
            try:
                self._check_origin(request)
                response = await handler(request)
            except Refusal as refusal:
                response = JSONResponse({"error": refusal.text}, refusal.status)
            except ClientDisconnect:
                response = Response(status_code=499)
            for name, value in HEADERS.items():
                response.headers[name] = value
            return response

        return checked

    def _check_origin(self, request: Request) -> None:
        """The Host must be ours, and a POST must come from our own page."""
        host = request.headers.get("host", "")
        try:
            name = urlsplit(f"//{host}").hostname or ""
            origin = urlsplit(request.headers.get("origin", f"//{host}")).netloc
        except ValueError as error:
            raise Refusal(400, f"not understood: {error}") from error
        if name not in {"localhost", "127.0.0.1", "::1"} | self.rules.names:
            raise Refusal(403, "this name is not answered: start `n9 guard serve` with --name NAME")
        if request.method in {"GET", "HEAD"}:
            return
        if request.headers.get("sec-fetch-site", "same-origin") != "same-origin" or origin != host:
            raise Refusal(403, "only this page itself may send that")

    def _who(self, request: Request) -> str | None:
        return self.logins.who(request.cookies.get(COOKIE))

    def _must_look(self, request: Request) -> None:
        if not self.rules.look_freely and self._who(request) is None:
            raise Refusal(401, "log in first")

    async def _home(self, request: Request) -> Response:
        if not self.rules.look_freely and self._who(request) is None:
            return RedirectResponse("/login", 303)
        return HTMLResponse(_file("page.html"))

    async def _login_form(self, request: Request) -> Response:
        return HTMLResponse(_file("login.html"))

    async def _login(self, request: Request) -> Response:
        form = parse_qs((await self._body(request, "application/x-www-form-urlencoded")).decode("utf-8", "replace"))
        who, token = form.get("who", [""])[0], form.get("token", [""])[0]
        if self.logins.locked:
            raise Refusal(429, "too many wrong tokens: wait a minute")
        cookie = self.logins.enter(token.strip(), who)
        self._record(clean_name(who) or "nobody", request, "login" if cookie else "refused login")
        if cookie is None:
            raise Refusal(403, "wrong or used token, or no name; the next token lies in the job's folder under page/login")
        answer = RedirectResponse("/", 303)
        answer.set_cookie(
            COOKIE, cookie, max_age=int(SESSION_SECONDS), httponly=True, samesite="strict", secure=self.rules.secure, path="/"
        )
        return answer

    async def _logout(self, request: Request) -> Response:
        self.logins.leave(request.cookies.get(COOKIE))
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(COOKIE, path="/")
        return answer

    # -- acts ---------------------------------------------------------------------------------------------------------------

    async def _act(self, request: Request) -> Response:
        who = self._who(request)
        if who is None:
            raise Refusal(401, "log in first: acts are kept with a name")
        try:
            asked = msgspec.json.decode(await self._body(request, "application/json"), type=Asked)
        except (msgspec.ValidationError, msgspec.DecodeError) as error:
            raise Refusal(400, f"not understood: {error}") from error
        fault = self.view.job.faults.get(asked.fault) if FAULT_ID.fullmatch(asked.fault) else None
        if fault is None:
            raise Refusal(404, "no such fault")
        if asked.act == "approve" and not self.view.shown(fault, 0.0)["approvable"]:
            raise Refusal(409, "nothing waits for an approval here: it was given, or the job has gone on or ended")
        self._record(who, request, asked.act, asked.fault, clean_name(asked.reason))
        self.view.touch(fault)
        self.step()
        return JSONResponse({"kept": True})

    def _record(self, who: str, request: Request, what: What, fault: str = "", reason: str = "") -> None:
        address = request.client.host if request.client else ""
        try:
            self.acts.record(who, address, what, self.view.job.faults.get(fault), reason)
        except OSError as error:
            raise Refusal(507, f"could not be kept, so nothing was done: {error}") from error

    async def _body(self, request: Request, kind: str) -> bytes:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != kind:
            raise Refusal(415, f"send {kind}")
        body = bytearray()
        try:
            async with asyncio.timeout(self.rules.body_seconds):
                async for block in request.stream():
                    body += block
                    if len(body) > self.rules.body_bytes:
                        raise Refusal(413, f"longer than {self.rules.body_bytes} bytes")
        except TimeoutError:
            raise Refusal(408, "too slow") from None
        return bytes(body)

    async def _metrics(self, request: Request) -> Response:
        token = self.rules.metrics_token
        if token is not None:
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.encode()):
                raise Refusal(401, "/metrics asks for its token: Authorization: Bearer TOKEN")
        return Response(metrics_text(self.view.job, self.acts), media_type=CONTENT_TYPE)


class Asked(msgspec.Struct, forbid_unknown_fields=True):
    """What the page sends when a person pushes a button."""

    act: What
    fault: str
    reason: str = ""

    def __post_init__(self) -> None:
        if self.act not in {"not a fault", "a fault", "approve"}:
            raise ValueError(f"{self.act!r} is not for the page to say")


def event_bytes(kind: str, value: object) -> bytes:
    """A server-sent event."""
    return f"event: {kind}\ndata: ".encode() + msgspec.json.encode(value) + b"\n\n"


def _file(name: str) -> str:
    return resources.files("ninthsky.guard.page").joinpath("static", name).read_text("utf-8")


async def _nothing(request: Request) -> Response:
    return Response(status_code=204)


def _static(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return Response(_file(name), media_type=kind)

    return answer
