"""The command itself: started under our environment, its output kept and passed on, ended with all that it started.

It writes into files, not into pipes of ours: should the guard die, the command goes on and its output is still kept.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import ninthsky
from ninthsky.guard.agent.spawner import tail_of

INJECT = Path(__file__).parent / "inject"
GRACE_SECONDS = 2.0  # between SIGTERM and SIGKILL, where the command is to be started again
TURN_SECONDS = 0.02
LINE = 1 << 16
_NICE = os.getpriority(os.PRIO_PROCESS, 0)


class Command:
    """`start` as often as wanted, never while it runs. `status` is None while it does, else as in subprocess.

    Without arguments there is nothing to start: ranks come that somebody else has started.
    """

    def __init__(self, arguments: Sequence[str], log: Path, ranks: Path, name: str, *, hold: bool) -> None:
        """`log`: of its outputs, to which -1.out is added; `ranks`: where ranks find us; `name`: to know its processes by.
        `hold`: a rank with a bad gradient waits for what is decided."""
        self._hold, self.arguments, self._log, self._ranks, self._name = hold, list(arguments), log, ranks, name
        self.attempt = 0
        self._popen: subprocess.Popen[bytes] | None = None
        self._tails: list[_Tail] = []
        log.parent.mkdir(parents=True, exist_ok=True)

    @property
    def token(self) -> str:
        """What every process of this attempt has in its environment as N9_ATTEMPT."""
        return f"{self._name}-{self.attempt}"

    @property
    def status(self) -> int | None:
        return self._popen.poll() if self._popen is not None else None

    @property
    def pid(self) -> int:
        return self._popen.pid if self._popen is not None else -1

    def log(self, name: str) -> Path:
        """`out` or `err` of this attempt."""
        return self._log.with_name(f"{self._log.name}-{self.attempt}.{name}")

    def start(self) -> None:
        """Raises OSError where the command cannot be started."""
        self.pump()
        self.attempt += 1
        if not self.arguments:
            return
        path = os.pathsep.join([str(INJECT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {
            **os.environ,
            "PYTHONPATH": path,
            "PYTHONUNBUFFERED": os.environ.get("PYTHONUNBUFFERED", "1"),  # into a file, lines would come in blocks
            "N9_RANKS": str(self._ranks),
            "N9_ATTEMPT": self.token,
            "N9_HOLD": "1" if self._hold else "",
            "N9_SOURCE": str(Path(ninthsky.__file__).parents[1]),
        }
        with self.log("out").open("wb") as out, self.log("err").open("wb") as err:
            # A session of its own: what the terminal sends is passed on by us, once.
            self._popen = subprocess.Popen(
                self.arguments, env=environment, stdout=out, stderr=err, start_new_session=True, preexec_fn=_usual_priority
            )
        self._tails = [_Tail(self.log("out"), sys.stdout.buffer), _Tail(self.log("err"), sys.stderr.buffer)]

    def pump(self) -> None:
        """Passes on what was written since the last time."""
        for tail in self._tails:
            tail.pump()

    def pass_on(self, number: int) -> None:
        """A signal that came to us. Ctrl-C goes to the command's whole group, as a terminal sends it; others to the command."""
        if self._popen is None or self._popen.poll() is not None:
            return
        if number in (signal.SIGINT, signal.SIGQUIT):
            os.killpg(self._popen.pid, number)
        else:
            self._popen.send_signal(number)

    async def end(self, first: Sequence[int] = ()) -> None:
        """Ends every process of this attempt; `first` (frozen ones) at once, the others after a moment's grace."""
        for pid in self._processes():  # `first` may name another host's processes: numbers alone say nothing
            _kill(pid, signal.SIGKILL if pid in first else signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        while any(True for _ in self._processes()):
            if time.monotonic() > deadline:
                for pid in self._processes():
                    _kill(pid, signal.SIGKILL)
            self.status  # noqa: B018 - collects the command itself
            await asyncio.sleep(TURN_SECONDS)
        if self._popen is not None:
            self._popen.wait()
        self.pump()

    def tail(self, limit: int = 4000) -> str:
        """The last that the command wrote to its error output."""
        return tail_of(self.log("err"), limit)

    def _processes(self) -> Iterator[int]:
        """Living ones of this attempt: launchers put their ranks into sessions of their own, and ranks may outlive them."""
        mark = f"N9_ATTEMPT={self.token}".encode()
        for entry in os.scandir("/proc"):
            if not entry.name.isdigit():
                continue
            try:
                with open(f"/proc/{entry.name}/environ", "rb") as file:
                    if mark in file.read().split(b"\0"):
                        yield int(entry.name)
            except OSError:
                continue  # somebody else's, or gone


class _Tail:
    """Copies a growing file to one of our own outputs."""

    def __init__(self, path: Path, out: BinaryIO) -> None:
        self._file, self._out = path.open("rb"), out

    def pump(self) -> None:
        while data := self._file.read(LINE):
            try:
                self._out.write(data)
                self._out.flush()
            except OSError:
                return  # nobody reads us any more; it is in the file


def _usual_priority() -> None:
    """The guard's own priority is not for what it watches."""
    if os.getpriority(os.PRIO_PROCESS, 0) != _NICE:
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass  # it went by itself
