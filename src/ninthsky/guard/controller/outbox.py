"""Commands to one host: numbered, kept until a report acknowledges them, sent again when that takes too long."""

from __future__ import annotations

from collections import deque

from ninthsky.guard import protocol as p

RESEND_SECONDS = 0.5
_UNNUMBERED = (p.WhoAreYou, p.Refused, p.Claim)


class Outbox:
    """`controller` is the id of this controller's process, `term` the one under which it leads."""

    def __init__(self, controller: str, term: int = 0) -> None:
        self._controller, self._term = controller, term
        self._number = 0
        self._waiting: deque[tuple[float, p.Numbered]] = deque()

    def pack(self, command: p.Command, now: float) -> p.Numbered:
        if isinstance(command, _UNNUMBERED):
            return p.Numbered(self._controller, 0, command, self._term)
        self._number += 1
        numbered = p.Numbered(self._controller, self._number, command, self._term)
        self._waiting.append((now, numbered))
        return numbered

    def acknowledge(self, controller: str, number: int, now: float) -> list[p.Numbered]:
        """What has to be sent again. An agent that has not heard of this controller yet acknowledges another's numbers."""
        while controller == self._controller and self._waiting and self._waiting[0][1].number <= number:
            self._waiting.popleft()
        if not self._waiting or now - self._waiting[0][0] < RESEND_SECONDS:
            return []
        self._waiting = deque((now, numbered) for _, numbered in self._waiting)
        return [numbered for _, numbered in self._waiting]
