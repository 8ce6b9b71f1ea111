"""The agent's Unix socket: known processes are heard, everything else is turned away."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from ninthsky.guard.agent.lines import Lines
from ninthsky.guard.agent.spawner import Process, Spawner, descends_from, process_state
from ninthsky.guard.probe import messages as m

SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)"]
CHILD = """
import os, socket, sys
from ninthsky.guard.probe import messages as m
s = socket.socket(socket.AF_UNIX); s.connect(os.environ["N9_AGENT"])
s.sendall(m.frame(m.Hello(int(os.environ["N9_SLOT"]), os.getpid()))); s.sendall(m.frame(m.Ready()))
print(m.decode_to_rank(m.receive(s)))
"""


def with_lines(
    tmp_path: Path, command: list[str], work: Callable[[Spawner, Lines, list[object], list[int]], Awaitable[None]]
) -> None:
    async def run() -> None:
        heard: list[object] = []
        statuses: list[int] = []
        spawner = Spawner(command, {}, tmp_path, tmp_path / "logs", "host-0", lambda _, status: statuses.append(status))

        def on_message(process: Process, message: m.ToAgent) -> None:
            heard.append(message)

        lines = Lines(spawner, on_message)
        await lines.listen(tmp_path / "agent.sock")
        try:
            await asyncio.wait_for(work(spawner, lines, heard, statuses), 30)
        finally:
            spawner.end_all()
            lines.close()

    asyncio.run(run())


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.01)


def test_a_started_process_is_heard_answered_and_its_end_is_seen(tmp_path: Path) -> None:
    async def work(spawner: Spawner, lines: Lines, heard: list[object], statuses: list[int]) -> None:
        process = spawner.start(3)
        assert descends_from(process.pid, process.pid) and process_state(process.pid)[0] in "RSD"
        await until(lambda: len(heard) == 2)
        assert heard == [m.Hello(3, process.pid), m.Ready()]
        assert lines.send(process, m.Stop())
        await until(lambda: statuses == [0])
        assert process.log.read_text().strip() == "Stop()"
        assert not spawner.processes and process_state(process.pid) == ("X", 0.0)

    with_lines(tmp_path, [sys.executable, "-c", CHILD], work)


def test_strangers_are_refused_before_a_byte_is_read(tmp_path: Path) -> None:
    """This test is no child of the agent's process in slot 0."""

    async def work(spawner: Spawner, lines: Lines, heard: list[object], statuses: list[int]) -> None:
        spawner.start(0)
        for data in (m.frame(m.Hello(0, 1)), struct.pack("<I", m.MAX_FRAME + 1), b""):
            reader, writer = await asyncio.open_unix_connection(tmp_path / "agent.sock")
            writer.write(data)
            with contextlib.suppress(ConnectionResetError):  # it was closed with our bytes unread
                assert await reader.read() == b""
            writer.close()
        assert lines.refused == {"unknown process": 3} and not heard

    with_lines(tmp_path, SLEEPER, work)


def test_bad_frames_of_an_own_process_are_refused_and_counted(tmp_path: Path) -> None:
    frames = [m.frame(m.Ready()), struct.pack("<I", m.MAX_FRAME + 1), struct.pack("<I", 3) + b"\xc1\xc1\xc1"]
    rude = f"""
import os, socket
line = socket.socket(socket.AF_UNIX)
line.connect(os.environ["N9_AGENT"])
line.sendall({frames!r}[int(os.environ["N9_SLOT"])])
line.recv(1)
"""

    async def work(spawner: Spawner, lines: Lines, heard: list[object], statuses: list[int]) -> None:
        for slot in range(3):
            spawner.start(slot)
        await until(lambda: len(statuses) == 3)
        assert lines.refused == {"unknown process": 1, "oversized frame": 1, "malformed frame": 1} and not heard

    with_lines(tmp_path, [sys.executable, "-c", rude], work)


def test_a_killed_process_is_reported_with_its_signal(tmp_path: Path) -> None:
    async def work(spawner: Spawner, lines: Lines, heard: list[object], statuses: list[int]) -> None:
        process = spawner.start(0)
        spawner.kill(process)
        await until(lambda: statuses == [-9])
        again = spawner.start(0, background=True)
        assert again.number == 2 and again.folder != process.folder
        spawner.to_foreground(again)

    with_lines(tmp_path, SLEEPER, work)
