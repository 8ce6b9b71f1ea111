from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from ninthsky.guard.probe.messages import Assign, Damaged, Shard, ShardHeld
from ninthsky.train.state import shards
from ninthsky.train.state.replicas import Replicas
from ninthsky.train.step.loop import Gate, Recipe, Trainer
from ninthsky.train.step.loss import next_token_loss
from tests.train.small import cursor, model


class Agent:
    """Stands for the line: keeps what is said, answers when told to."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.answers: list[ShardHeld] = []
        self.waited = 0
        self.writing = nullcontext

    def send(self, message: Any) -> None:
        self.said.append(message)

    def take(self, kind: type, accept: Callable[[Any], bool]) -> Any:
        return next(filter(accept, self.answers), None)

    def wait_for(self, kind: type, accept: Callable[[Any], bool]) -> Any:
        self.waited += 1
        self.answers = [ShardHeld(shard.rank, shard.step) for shard in self.said]
        return self.take(kind, accept)


class Count:
    """Something else that goes along."""

    def __init__(self) -> None:
        self.value = 0

    def dump(self) -> dict[str, Any]:
        return {"value": self.value}

    def load(self, tree: dict[str, Any]) -> None:
        self.value = tree["value"]


def begun(folder: Path, every: int, steps: int, resume: int = -1) -> tuple[Agent, Replicas, Trainer, Count, Assign]:
    agent, count = Agent(), Count()
    assign = Assign(1, 0, 1, resume, False, "127.0.0.1", ["a"])
    replicas = Replicas(agent, folder, every, steps, {"count": count})  # type: ignore[arg-type]
    trainer = Trainer(model(), next_token_loss, Recipe(), steps)
    return agent, replicas, trainer, count, assign


def one_step(replicas: Replicas, trainer: Trainer, count: Count) -> None:
    step = trainer.step
    trainer.local_gradients(cursor().read(step))
    replicas.before_gate(step)
    trainer.apply(Gate.total([trainer.gate_values()]))
    count.value += 10
    replicas.after(step, trainer)


@pytest.mark.parametrize(("every", "written", "waits"), [(1, [0, 1, 2, 3, 4, 5, 6], 6), (3, [2, 5, 6], 2)])
def test_every_kth_step_and_the_last_are_replicated_and_two_are_kept(
    tmp_path: Path, every: int, written: list[int], waits: int
) -> None:
    agent, replicas, trainer, count, assign = begun(tmp_path, every, 7)
    replicas.begin(assign, trainer)
    for _ in range(7):
        one_step(replicas, trainer, count)
    assert [shard.step for shard in agent.said if isinstance(shard, Shard)] == written
    # Nobody waits for a replica before the next one is due, and never are two on their way.
    assert (agent.waited, replicas.held) == (waits, written[-2])
    assert sorted(int(path.name.rpartition("-")[2]) for path in tmp_path.glob("shard-*")) == written[-2:]
    replicas.finish()
    assert replicas.held == 6


def test_an_answer_is_taken_when_it_comes(tmp_path: Path) -> None:
    agent, replicas, trainer, count, assign = begun(tmp_path, 3, 9)
    replicas.begin(assign, trainer)
    for _ in range(3):
        one_step(replicas, trainer, count)
    replicas.before_gate(3)
    assert replicas.held == -1
    agent.answers = [ShardHeld(0, 2)]
    replicas.before_gate(4)
    assert (replicas.held, agent.waited) == (2, 0)


def test_state_and_what_goes_along_come_back_to_the_bit(tmp_path: Path) -> None:
    _, replicas, trainer, count, assign = begun(tmp_path, 2, 9)
    replicas.begin(assign, trainer)
    for _ in range(4):
        one_step(replicas, trainer, count)
    agent, again, fresh, counted, assign = begun(tmp_path, 2, 9, resume=3)
    again.restore(assign, fresh)
    assert (fresh.digest(), fresh.step, counted.value) == (trainer.digest(), 4, 40)
    path = shards.shard_path(tmp_path, 0, 3)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(shards.ShardError, match="altered"):
        again.restore(assign, fresh)
    (told,) = agent.said
    assert isinstance(told, Damaged) and (told.rank, told.step) == (0, 3)
