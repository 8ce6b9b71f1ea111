from __future__ import annotations

import stat
from pathlib import Path

from ninthsky.guard.page.login import GUESSES, SESSION_SECONDS, Logins


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_token_is_good_once_and_the_next_lies_in_a_closed_file(tmp_path: Path) -> None:
    clock, file = Clock(), tmp_path / "page" / "login"
    logins = Logins(file, clock=clock)
    token = logins.token
    assert file.read_text().strip() == token and stat.S_IMODE(file.stat().st_mode) == 0o600
    assert logins.enter(token, " \n ") is None, "no name: the token stays good"
    cookie = logins.enter(token, "Ada\x00 \x1b[31m L.")
    assert cookie and logins.who(cookie) == "Ada [31m L."
    assert logins.enter(token, "Eve") is None
    assert logins.who("x") is None and logins.who(None) is None
    second = logins.enter(file.read_text().strip(), "Bo")
    assert logins.who(second) == "Bo"
    logins.leave(second)
    assert logins.who(second) is None
    clock.now += SESSION_SECONDS + 1
    assert logins.who(cookie) is None


def test_guessing_is_stopped_for_a_while(tmp_path: Path) -> None:
    clock = Clock()
    logins = Logins(tmp_path / "login", clock=clock)
    for _ in range(GUESSES):
        assert logins.enter("guess", "Eve") is None
        clock.now += 1
    assert logins.locked and logins.enter(logins.token, "Ada") is None
    clock.now += 60
    assert not logins.locked and logins.enter(logins.token, "Ada")
