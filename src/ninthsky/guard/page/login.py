"""Who may look and act: one-time tokens, sessions in a cookie, and a limit on guesses.

A token is good for one login. The next one lies in FOLDER/page/login (mode 0600): whoever may read the job's folder may log in.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SESSION_SECONDS = 12 * 3600.0
SESSIONS = 64
GUESSES = 5  # wrong tokens in GUESS_SECONDS, from anywhere; then nobody logs in for a while
GUESS_SECONDS = 60.0
NAME_LENGTH = 60


@dataclass(frozen=True)
class Session:
    """Who is logged in. The cookie itself is not kept, only its digest."""

    who: str
    until: float


class Logins:
    """Tokens and sessions of one page."""

    def __init__(self, file: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._file, self._clock = file, clock
        self._sessions: dict[bytes, Session] = {}
        self._wrong: deque[float] = deque(maxlen=GUESSES)
        self.token = ""
        self._renew()

    def _renew(self) -> None:
        self.token = secrets.token_urlsafe(24)
        self._file.parent.mkdir(mode=0o700, exist_ok=True)
        draft = self._file.with_name(f".{self._file.name}.{os.getpid()}")
        draft.unlink(missing_ok=True)
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(self.token + "\n")
        draft.replace(self._file)

    @property
    def locked(self) -> bool:
        """Whether so many wrong tokens came lately that none is taken now."""
        return len(self._wrong) == GUESSES and self._clock() - self._wrong[0] < GUESS_SECONDS

    def enter(self, token: str, who: str) -> str | None:
        """The cookie of a new session, or None: wrong or used token, no name, or too many wrong ones lately."""
        if self.locked:
            return None
        if not hmac.compare_digest(_digest(token), _digest(self.token)):
            self._wrong.append(self._clock())
            return None
        who = clean_name(who)
        if not who:
            return None
        self._renew()
        cookie = secrets.token_urlsafe(32)
        now = self._clock()
        self._sessions = {key: one for key, one in self._sessions.items() if one.until > now}
        while len(self._sessions) >= SESSIONS:
            self._sessions.pop(next(iter(self._sessions)))
        self._sessions[_digest(cookie)] = Session(who, now + SESSION_SECONDS)
        return cookie

    def who(self, cookie: str | None) -> str | None:
        """The name behind a cookie, or None."""
        session = self._sessions.get(_digest(cookie)) if cookie else None
        return session.who if session is not None and session.until > self._clock() else None

    def leave(self, cookie: str | None) -> None:
        """Ends a session."""
        if cookie:
            self._sessions.pop(_digest(cookie), None)


def clean_name(who: str) -> str:
    """A name as it goes into the record: printable, one line, not too long."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in who).split())[:NAME_LENGTH]


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
