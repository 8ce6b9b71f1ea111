"""uvicorn's HTTP with an end to its patience: by itself it waits for ever for the rest of a request's head."""

from __future__ import annotations

import asyncio
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0  # for the head of a request, from the connection or the last answer on
HEADS = 64  # connections that wait for one: of more, the oldest is cut off, so that silence keeps nobody out


class Impatient(H11Protocol):
    """Cuts off who has not sent a whole head in time. Bodies have their own limit (app.Rules)."""

    waiting: ClassVar[dict[Impatient, asyncio.TimerHandle]] = {}  # of this process, the oldest first

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._look()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_more()
        super().connection_lost(exc)

    def _look(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._wait_no_more()
        elif self not in self.waiting and not self.transport.is_closing():
            self.waiting[self] = self.loop.call_later(HEAD_SECONDS, self.transport.abort)
            if len(self.waiting) > HEADS:
                oldest = next(iter(self.waiting))
                oldest._wait_no_more()
                oldest.transport.abort()

    def _wait_no_more(self) -> None:
        if (timer := self.waiting.pop(self, None)) is not None:
            timer.cancel()
