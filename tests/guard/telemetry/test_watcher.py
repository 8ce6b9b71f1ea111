"""The agent's eye: exporters that answer, lie, hang or are not there; what is sent, and how much of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from ninthsky.errors import UserError
from ninthsky.guard.spec import HostSpec, JobSpec, Watch
from ninthsky.guard.telemetry import exporter
from ninthsky.guard.telemetry.note import Note
from ninthsky.guard.telemetry.watcher import MOST, HostWatch

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def ask(answer: Answer, path: str = "/metrics") -> str:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        return await exporter.get(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{path}")
    finally:
        server.close()


def says(data: bytes) -> Answer:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(data)
        await writer.drain()

    return answer


OK = b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n"


def test_a_page() -> None:
    assert asyncio.run(ask(says(OK + b"a 1\nb 2\n"))) == "a 1\nb 2\n"


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "404"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://elsewhere/\r\n\r\n", "302"),
        (b"SSH-2.0-OpenSSH\r\n", "no HTTP"),
        (b"", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000, "no HTTP"),
        (OK + b"x" * (exporter.LARGEST + 1), "more than"),
    ],
)
def test_answers_that_are_none(data: bytes, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        asyncio.run(ask(says(data)))


def test_an_exporter_that_hangs_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "SECONDS", 0.2)

    async def nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    with pytest.raises(TimeoutError, match="no answer"):
        asyncio.run(ask(nothing))


class Sent:
    def __init__(self) -> None:
        self.notes: list[Note] = []
        self.problems: list[str] = []
        self.dropped = 0

    def __call__(self, notes: list[Note], problems: list[str], dropped: int) -> None:
        self.notes += notes
        self.problems += problems
        self.dropped += dropped


async def watch(watcher: HostWatch, seconds: float, act: Callable[[], None] = lambda: None) -> None:
    task = asyncio.ensure_future(watcher.run())
    await asyncio.sleep(seconds / 2)
    act()
    await asyncio.sleep(seconds / 2)
    task.cancel()
    watcher.close()


def test_a_file_that_is_not_there_is_told_once_and_read_when_it_comes(tmp_path: Path) -> None:
    sent = Sent()
    watcher = HostWatch("h", 8, f"{tmp_path}/{{host}}.prom", "off", 0.02, sent)

    def appear() -> None:
        (tmp_path / "h.prom").write_text('gpu_junction_temperature{gpu_id="1"} 120\n')

    asyncio.run(watch(watcher, 0.4, appear))
    assert len(sent.problems) == 1 and "h.prom" in sent.problems[0]
    assert [(note.cause, note.slot) for note in sent.notes] == [("thermal", 1)]
    assert [note.cause for note in watcher.newest()] == ["thermal"]


def test_a_storm_is_bounded_and_what_is_hard_goes_first(tmp_path: Path) -> None:
    log = tmp_path / "kern.log"
    log.touch()
    sent = Sent()
    watcher = HostWatch("h", 8, "", str(log), 10.0, sent)
    storm = [f"NVRM: Xid (PCI:0000:{bus:02x}:00): {119 if bus else 79}, pid=1" for bus in range(60, -1, -1)]
    log.write_text("\n".join(storm) + "\n")
    watcher.look()
    assert len(sent.notes) == MOST and sent.notes[0].weight == "hard"
    with log.open("a") as file:
        file.write("NVRM: Xid (PCI:0000:ff:00): 48, pid=1\n")
    watcher.look()
    assert len(sent.notes) == MOST, "no more within ten seconds"
    watcher.close()
    assert not HostWatch("h", 8, "", "off", 10.0, sent).newest()


def test_what_nobody_thought_of_ends_the_watch_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.prom").write_text("gpu_health 1\n")
    sent = Sent()
    watcher = HostWatch("h", 8, str(tmp_path / "x.prom"), "off", 0.02, sent)

    def broken(*_: object) -> list[Note]:
        raise RuntimeError("surprise")

    monkeypatch.setattr(watcher._readings, "take", broken)
    asyncio.run(watch(watcher, 0.2))
    assert len(sent.problems) == 1 and "surprise" in sent.problems[0] and "surprise" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["ftp://x/metrics", "http://", "https:///metrics"])
def test_a_source_that_is_none_is_one_clear_error_before_the_job(tmp_path: Path, source: str) -> None:
    with pytest.raises(UserError) as caught:
        JobSpec(run_id="x", folder=str(tmp_path), command=["x"], world=1, hosts=[HostSpec(name="a", slots=1)],
                watch=Watch(exporter=source))  # fmt: skip
    assert caught.value.code == "N9-CFG-012"
