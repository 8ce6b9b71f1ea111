"""The leader's journal, events and faults, copied to the standby over the encrypted wire while they are written.

Copying runs a few milliseconds behind. What the last of them held is not lost with the leader: agents tell again what their
ranks said and which of them ended (protocol.Register), and generations are known to every agent.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from ninthsky.guard.controller.journal import JOURNAL
from ninthsky.guard.protocol import Copy, Follow
from ninthsky.run.folder import read_json

EVENTS = "events.jsonl"
FAULTS = "faults"
PIECE = 1 << 20  # bytes in one message
COARSE_NANOSECONDS = 1_000_000_000
TAIL = 4096  # bytes in which a journal's last entry lies


class Source:
    """The leader's end, for one follower. `pump` sends what is new; it may be called as often as one likes."""

    def __init__(self, folder: Path, controller: str, send: Callable[[Copy], None]) -> None:
        self._folder, self._controller, self._send = folder, controller, send
        self._sent: dict[str, int] = {}
        self._told: dict[str, int] = {}  # by the follower, last
        self._faults: dict[str, int] = {}  # file -> time of its change, as it was sent
        self._following = False
        self._stamp = -1

    def follow(self, message: Follow) -> None:
        """The follower says how far it is. What did not arrive since it last said so is sent again."""
        self._following = True
        missing = message.faults != _bytes_of_faults(self._folder) and message.faults == self._told.get(FAULTS)
        self._told[FAULTS] = message.faults
        if message.anew or missing:
            self._faults.clear()
        for name, here in ((JOURNAL, message.journal), (EVENTS, message.events)):
            if message.anew or here == self._told.get(name):
                self._sent[name] = here
            self._told[name] = here
        self.pump()

    def pump(self) -> None:
        if not self._following:
            return
        # Faults first: an entry of the journal must not come before the fault that it speaks of.
        for path in self._changed_faults():
            changed = path.stat().st_mtime_ns
            if self._faults.get(path.name) != changed:
                self._faults[path.name] = changed
                text = path.read_bytes()
                self._send(Copy(self._controller, f"{FAULTS}/{path.name}", 0, len(text), text))
        for name in (JOURNAL, EVENTS):
            self._pump_lines(name)

    def _changed_faults(self) -> list[Path]:
        """Nothing while no file was put into the folder; its time of change is as coarse as the kernel's clock."""
        folder = self._folder / FAULTS
        stamp = folder.stat().st_mtime_ns if folder.exists() else 0
        if stamp == self._stamp and time.time_ns() - stamp > COARSE_NANOSECONDS and self._faults:
            return []
        self._stamp = stamp
        return sorted(folder.glob("F-*.json"))

    def _pump_lines(self, name: str) -> None:
        path = self._folder / name
        size = path.stat().st_size if path.exists() else 0
        sent = self._sent.get(name, 0)
        if sent >= size:
            return
        with path.open("rb") as file:
            file.seek(sent)
            while sent < size and (text := file.read(PIECE)):
                self._send(Copy(self._controller, name, sent, size, text))
                sent += len(text)
        self._sent[name] = sent


class Replica:
    """The standby's end. Nothing is written where it finds the leader's own files in its folder: they share it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.leader = ""  # id of the controller that is followed
        self._shared = False
        self._files: dict[str, tuple[BinaryIO, Path]] = {}
        self._looked = 0

    def follow(self) -> Follow:
        """What to say to the leader, once a second."""
        journal, events = (self._files[name][0].tell() if name in self._files else 0 for name in (JOURNAL, EVENTS))
        return Follow(journal, events, _bytes_of_faults(self.folder), anew=not self._files and not self._shared)

    def take(self, copy: Copy) -> None:
        """A piece. One that does not join on to what is here is dropped: it comes again."""
        if copy.controller != self.leader:
            self.leader = copy.controller
            self._shared = any((read_json(path) or {}).get("id") == copy.controller for path in _presences(self.folder))
            self.close()
        if self._shared:
            return
        if copy.name in (JOURNAL, EVENTS):
            self._append(copy)
        elif copy.name.startswith(f"{FAULTS}/F-") and copy.name.count("/") == 1 and copy.name.endswith(".json"):
            path = self.folder / copy.name
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_suffix(".draft")
            draft.write_bytes(copy.text)
            draft.replace(path)

    def _append(self, copy: Copy) -> None:
        if copy.name not in self._files:
            if copy.offset:
                return
            # Of an older leader something may be here that the new one never had: its copy is whole before it replaces that.
            draft = self.folder / f".{copy.name}.copy"
            draft.parent.mkdir(parents=True, exist_ok=True)
            self._files[copy.name] = (draft.open("wb", buffering=0), draft)
        file, path = self._files[copy.name]
        if copy.offset != file.tell():
            return
        file.write(copy.text)
        if path.name != copy.name and file.tell() >= copy.size:
            whole = self.folder / copy.name
            path.replace(whole)
            self._files[copy.name] = (file, whole)

    def ended(self) -> bool:
        """Whether the job is over, by the end of the journal that is here."""
        path = self.folder / JOURNAL
        size = path.stat().st_size if path.exists() else 0
        if size == self._looked:
            return False
        self._looked = size
        with path.open("rb") as file:
            file.seek(max(0, size - TAIL))
            return b'{"kind":"done",' in file.read()

    def close(self) -> None:
        for file, _ in self._files.values():
            file.close()
        self._files.clear()


def _bytes_of_faults(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / FAULTS).glob("F-*.json"))


def _presences(folder: Path) -> tuple[Path, Path]:
    return folder / "controller.json", folder / "standby.json"
