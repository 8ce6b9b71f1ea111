from __future__ import annotations

import multiprocessing
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ninthsky.guard.probe.line import FENCED_STATUS, ORPHANED_STATUS, Interrupted, Line
from ninthsky.guard.probe.messages import (
    Abort,
    Assign,
    Broken,
    Decide,
    Fenced,
    Hello,
    Permit,
    ShardHeld,
    Stop,
    ToRank,
    decode_to_agent,
    frame,
    receive,
)


class Agent:
    """The other end."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(self.path)
        self._server.listen()
        self.connection: socket.socket | None = None
        self.lines: list[Line] = []

    def accept(self) -> None:
        self.connection, _ = self._server.accept()

    def say(self, *messages: ToRank) -> None:
        assert self.connection is not None
        self.connection.sendall(b"".join(map(frame, messages)))

    def hear(self) -> object:
        assert self.connection is not None
        body = receive(self.connection)
        assert body is not None
        return decode_to_agent(body)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    agent = Agent(tmp_path / "agent.sock")
    yield agent
    for line in agent.lines:
        line.close()


def _connected(agent: Agent) -> tuple[Line, list[Abort]]:
    aborts: list[Abort] = []
    line = Line(agent.path, aborts.append)
    agent.lines.append(line)
    agent.accept()
    return line, aborts


def test_messages_arrive_whole_from_many_threads(agent: Agent) -> None:
    line, _ = _connected(agent)
    text = "x" * 20_000
    threads = [threading.Thread(target=line.send, args=(Broken(1, number, text),)) for number in range(16)]
    for thread in threads:
        thread.start()
    heard = [agent.hear() for _ in threads]
    assert sorted(message.step for message in heard if isinstance(message, Broken)) == list(range(16))
    assert all(isinstance(message, Broken) and message.error == text for message in heard)


def test_what_is_not_waited_for_keeps_its_order(agent: Agent) -> None:
    line, _ = _connected(agent)
    agent.say(ShardHeld(0, 1), ShardHeld(0, 2), Permit(4, True), Decide(9, 0, "redo"))
    assert line.wait_for(Permit).step == 4
    assert line.wait_for(ShardHeld, lambda message: message.step == 2).step == 2
    assert line.wait_for(ShardHeld).step == 1
    assert line.wait_for(Decide).action == "redo"


def test_abort_acts_at_once_and_interrupts_the_wait(agent: Agent) -> None:
    line, aborts = _connected(agent)
    line.begin(3)
    agent.say(Abort(3, "rank 2 is gone"), Assign(4, 0, 4, 7, False, "127.0.0.1", ["a"] * 4))
    with pytest.raises(Interrupted) as ended:
        line.wait_for(ShardHeld)
    assert aborts == [Abort(3, "rank 2 is gone")] == [ended.value.message]
    assert line.wait_for(Assign).generation == 4


def test_an_abort_of_an_older_generation_is_dropped(agent: Agent) -> None:
    line, aborts = _connected(agent)
    line.begin(4)
    agent.say(Abort(3, "late"), ShardHeld(0, 1), Stop())
    assert line.wait_for(ShardHeld).step == 1
    assert aborts == []
    with pytest.raises(Interrupted):
        line.wait_for(ShardHeld)


def test_a_new_generation_forgets_answers_to_the_old_one(agent: Agent) -> None:
    line, _ = _connected(agent)
    agent.say(ShardHeld(0, 1), Permit(1, False), Permit(2, True))
    assert line.wait_for(Permit, lambda message: message.step == 2).allowed
    line.begin(2)
    agent.say(ShardHeld(0, 5))
    assert line.wait_for(ShardHeld).step == 5


def _thawed(path: str, mark: Path, go: Path) -> None:
    line = Line(path, lambda _: None)
    line.send(Hello(0, os.getpid()))
    while not go.exists():
        pass  # as if frozen: Fenced lies unread or has just been read
    with line.writing():
        mark.touch()
    os._exit(0)


def test_a_fenced_process_leaves_with_its_status_and_writes_nothing(agent: Agent, tmp_path: Path) -> None:
    mark, go = tmp_path / "written", tmp_path / "go"
    process = multiprocessing.get_context("fork").Process(target=_thawed, args=(agent.path, mark, go))
    process.start()
    agent.accept()
    assert isinstance(agent.hear(), Hello)
    agent.say(Fenced(2))
    go.touch()
    process.join()
    assert process.exitcode == FENCED_STATUS
    assert not mark.exists()


def test_a_process_without_its_agent_ends(agent: Agent, tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(
        target=_thawed, args=(agent.path, tmp_path / "written", tmp_path / "never")
    )
    process.start()
    agent.accept()
    assert isinstance(agent.hear(), Hello)
    assert agent.connection is not None
    agent.connection.close()
    process.join()
    assert process.exitcode == ORPHANED_STATUS


def test_taking_does_not_wait_keeps_other_messages_and_hears_an_abort(agent: Agent) -> None:
    line, aborts = _connected(agent)
    line.begin(3)
    assert line.take(Permit) is None
    agent.say(ShardHeld(0, 5), Permit(4, True))
    while (permit := line.take(Permit, lambda message: message.step == 4)) is None:
        pass
    assert permit.allowed and line.take(ShardHeld) == ShardHeld(0, 5)
    agent.say(Abort(2, "an older one"), Abort(3, "over"))

    def take_until_it_comes() -> None:
        while line.take(Permit) is None:
            pass

    with pytest.raises(Interrupted):
        take_until_it_comes()
    assert [abort.reason for abort in aborts][-1] == "over"
