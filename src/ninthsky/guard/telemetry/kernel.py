"""The kernel's log as it grows: /dev/kmsg where it may be read, else a file; lines that tell of trouble become notes."""

from __future__ import annotations

import errno
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ninthsky.guard.passive.lines import CALM, SERIOUS, tells_of_trouble
from ninthsky.guard.playbook.book import UNKNOWN, Playbook, shipped
from ninthsky.guard.playbook.match import match
from ninthsky.guard.telemetry import table
from ninthsky.guard.telemetry.note import HOST_WIDE, LONGEST, SURE, Note
from ninthsky.guard.telemetry.scrape import bus_of

KMSG = Path("/dev/kmsg")
RECORD = 8192  # bytes, the longest record of /dev/kmsg
LINES = 512  # read at a time; of a flood the rest comes with the next look
BYTES = 1 << 18  # likewise, of a file
SAME_SECONDS = 60.0  # a line like one that was told within so many seconds is counted, not told
TEMPLATES = 256  # kinds of lines remembered
INIT_PID_NAMESPACE = 0xEFFFFFFC  # inode of the first process namespace (include/linux/proc_ns.h)

_KMSG = re.compile(r"^(\d+),(\d+),(\d+),[^;]*;")
_UPTIME = re.compile(r"^(?:<\d+>)?\[ *(\d+\.\d+)\] ?")
_NUMBERS = re.compile(r"0x[0-9a-f]+|\b[0-9a-f]{8,}\b|\d+", re.IGNORECASE)
_XID = re.compile(r"xid ?\(.{0,40}\): ?(\d+)", re.IGNORECASE)
_KILLED = re.compile(r"killed process (\d+)", re.IGNORECASE)


class Line(NamedTuple):
    """`uptime` in seconds since boot, -1 where the line does not say."""

    text: str
    uptime: float


class KernelLog:
    """From its end on. Raises OSError where it cannot be opened."""

    def __init__(self, path: Path = KMSG) -> None:
        self.path = path
        self.lost = 0  # records of /dev/kmsg that were overwritten before they were read
        self._device = path == KMSG
        self._file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(self._file, 0, os.SEEK_END)
        self._begun = b""  # of a line without its end

    def read(self) -> list[Line]:
        """What was added, at most LINES records or BYTES bytes."""
        return self._records() if self._device else self._lines()

    def close(self) -> None:
        os.close(self._file)

    def _records(self) -> list[Line]:
        found = []
        for _ in range(LINES):
            try:
                record = os.read(self._file, RECORD)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.EPIPE:
                    raise
                self.lost += 1  # the next read goes on with the oldest that is left
                continue
            line = parse(record.decode("utf-8", "replace"))
            if line is not None:
                found.append(line)
        return found

    def _lines(self) -> list[Line]:
        data = self._begun + os.read(self._file, BYTES)
        if not data[len(self._begun) :]:
            self._follow_rotation()
        *whole, self._begun = data.split(b"\n")
        self._begun = self._begun[-RECORD:]
        texts = (line.decode("utf-8", "replace") for line in whole)
        return [line for text in texts if text and (line := parse(text)) is not None]

    def _follow_rotation(self) -> None:
        """The file was cut short, or another one has its name now."""
        try:
            named, mine = os.stat(self.path), os.fstat(self._file)
        except OSError:
            return  # being rotated: it will be there at the next look
        if named.st_ino != mine.st_ino:
            os.close(self._file)
            self._file = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        elif named.st_size < os.lseek(self._file, 0, os.SEEK_CUR):
            os.lseek(self._file, 0, os.SEEK_SET)


def parse(text: str) -> Line | None:
    """A record of /dev/kmsg, a line of dmesg, or of syslog. None for what programs, not the kernel, wrote into /dev/kmsg."""
    if (record := _KMSG.match(text)) is not None:
        if int(record[1]) >> 3:
            return None  # facility: 0 is the kernel
        return Line(text[record.end() :].split("\n", 1)[0], int(record[3]) / 1e6)
    if (stamped := _UPTIME.match(text)) is not None:
        return Line(text[stamped.end() :].rstrip(), float(stamped[1]))
    return Line(text.rstrip(), -1.0)


class Reader:
    """Lines -> notes. `slot_of(pid)` names the card of a process of ours, `buses` the card at an address on the bus."""

    def __init__(self, buses: dict[str, int], slot_of: Callable[[int], int], book: Playbook | None = None) -> None:
        self._buses, self._slot_of = buses, slot_of
        self._book, self._table = book or shipped(), table.shipped()
        self._told: dict[str, tuple[float, int]] = {}  # template -> when, and how often since
        self._all_pids = _sees_all_pids()

    def note(self, line: Line, now: float) -> Note | None:
        """The note of a line, None where it tells of no trouble or was told just now. `now`: time.monotonic()."""
        text = line.text[:LONGEST]
        row = self._table.row_of(text)
        weight = row.weight if row is not None else None
        calm = not tells_of_trouble(text) or (CALM.search(text) and not SERIOUS.search(text))
        if weight == "ignore" or (weight is None and calm):
            return None
        template = _template(text)
        told, count = self._told.get(template, (-math.inf, 0))
        if now - told < SAME_SECONDS:
            self._told[template] = (told, count + 1)
            return None
        cause = row.cause if row is not None else ""
        if not cause:
            best = match(text, self._book)[0]
            cause = best.cause if best.cause != UNKNOWN and best.score >= SURE else ""
        if weight is None and not cause:
            return None
        slot = self._slot(text)
        if (killed := _KILLED.search(text)) is not None:
            slot = self._slot_of(int(killed[1]))
            if slot == HOST_WIDE and self._all_pids:
                return None  # somebody else's process
        while len(self._told) >= TEMPLATES:
            del self._told[next(iter(self._told))]
        self._told[template] = (now, 0)
        age = min(max(0.0, now - line.uptime), SAME_SECONDS) if line.uptime >= 0 else 0.0
        return Note("kernel", weight or "said", cause, slot, text, age=age, uptime=line.uptime, count=count + 1)

    def _slot(self, text: str) -> int:
        return self._buses.get(bus_of(text), HOST_WIDE)


def _template(text: str) -> str:
    """Lines that are alike but for their numbers; Xids of other numbers, or of other cards, are not."""
    xid = _XID.search(text)
    return f"{_NUMBERS.sub('#', text)}|{bus_of(text)}|{xid[1] if xid else ''}"


def _sees_all_pids() -> bool:
    """Whether pids in the kernel's log are the ones that this process sees: not within a container."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino == INIT_PID_NAMESPACE
    except OSError:
        return False


def open_log(setting: str) -> tuple[KernelLog | None, str]:
    """`auto`, `off` or a file -> the log, or why there is none (nothing to say where none was asked for)."""
    if setting == "off":
        return None, ""
    path = KMSG if setting == "auto" else Path(setting)
    try:
        return KernelLog(path), ""
    except OSError as error:
        return None, "" if setting == "auto" else f"{path}: {error.strerror or error}"
