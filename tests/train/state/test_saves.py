from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytest.importorskip("torch")

from ninthsky.guard.probe.messages import Assign, MayCommit, Permit
from ninthsky.run.folder import read_lines
from ninthsky.train.state import checkpoint
from ninthsky.train.state.checkpoint.records import records
from ninthsky.train.state.saves import Saves
from ninthsky.train.step.loop import Gate, Recipe, Trainer
from ninthsky.train.step.loss import next_token_loss
from tests.train.small import cursor, model

ASSIGN = Assign(3, 0, 1, -1, False, "127.0.0.1", ["a"])


class Agent:
    """Stands for the line: permits, or refuses, whatever is asked."""

    def __init__(self, allows: bool = True) -> None:
        self.allows, self.asked, self.writing = allows, [], nullcontext  # type: ignore[var-annotated]

    def send(self, message: MayCommit) -> None:
        self.asked.append(message)

    def take(self, kind: type, accept: Callable[[Any], bool]) -> Any:
        return next(filter(accept, [Permit(message.step, self.allows) for message in self.asked]), None)

    wait_for = take


class Count:
    value = 0

    def dump(self) -> dict[str, Any]:
        return {"value": self.value}

    def load(self, tree: dict[str, Any]) -> None:
        self.value = tree["value"]


def joined(folder: Path, agent: Agent | None = None) -> tuple[Saves, Trainer, Count, Agent]:
    agent, count, trainer = agent or Agent(), Count(), Trainer(model(), next_token_loss, Recipe(), 10)
    saves = Saves(agent, folder / "checkpoint", str(folder / "events.jsonl"), {"count": count})  # type: ignore[arg-type]
    saves.join(ASSIGN, trainer)
    return saves, trainer, count, agent


def one_step(trainer: Trainer) -> None:
    trainer.local_gradients(cursor().read(trainer.step))
    trainer.apply(Gate.total([trainer.gate_values()]))


def tend_until_asked(saves: Saves, agent: Agent) -> None:
    while not agent.asked:
        saves.tend()
        time.sleep(0.002)
    saves.tend()


def test_a_save_is_named_between_steps_and_what_goes_along_comes_back(tmp_path: Path) -> None:
    saves, trainer, count, agent = joined(tmp_path)
    one_step(trainer)
    count.value = 7
    saves.begin()
    one_step(trainer)
    tend_until_asked(saves, agent)
    assert agent.asked == [MayCommit(3, 1)]
    assert [path.name for path in checkpoint.checkpoints(tmp_path / "checkpoint")] == ["step-1"]
    again, fresh, counted, _ = joined(tmp_path)
    again.restore(ASSIGN, fresh)
    assert (fresh.step, counted.value) == (1, 7)
    assert not (tmp_path / "events.jsonl").exists()


def test_a_disk_that_fails_is_told_with_a_record_and_training_goes_on(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    saves, trainer, _, agent = joined(tmp_path)
    one_step(trainer)
    saves.begin()
    for path in (tmp_path / "checkpoint").glob(".step-*"):
        path.rename(tmp_path / "lost")  # as a file system that goes away
    while not (tmp_path / "events.jsonl").exists():
        saves.tend()
        one_step(trainer)
    (event,) = read_lines(tmp_path / "events.jsonl")
    (record,) = records(tmp_path / "checkpoint")
    assert (event["kind"], event["id"], record.id, record.verdict) == ("checkpoint.failed", "CKPT-1", "CKPT-1", "not kept")
    assert not agent.asked and saves.end() == ""


def test_not_even_the_record_can_be_written_and_training_goes_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "checkpoint").write_text("a file where the folder should be")
    saves, trainer, _, _ = joined(tmp_path)
    saves.begin()
    one_step(trainer)
    assert saves.end() == "it was not begun"
    assert "it could not be recorded" in capfd.readouterr().err


def test_a_stale_generation_is_refused_and_told(tmp_path: Path) -> None:
    saves, trainer, _, agent = joined(tmp_path, Agent(allows=False))
    one_step(trainer)
    saves.begin()
    tend_until_asked(saves, agent)
    (event,) = read_lines(tmp_path / "events.jsonl")
    assert "may no longer commit" in event["reason"] and not checkpoint.checkpoints(tmp_path / "checkpoint")


def test_what_was_under_way_when_a_generation_ended_never_becomes_visible(tmp_path: Path) -> None:
    saves, trainer, _, agent = joined(tmp_path)
    one_step(trainer)
    saves.begin()
    saves.leave()
    saves.join(ASSIGN, trainer)
    saves.tend()
    assert saves.settle() is None and not agent.asked and not checkpoint.checkpoints(tmp_path / "checkpoint")


def test_a_damaged_one_is_told_when_the_run_is_taken_up_again(tmp_path: Path) -> None:
    saves, trainer, _, _ = joined(tmp_path)
    for _ in range(2):
        one_step(trainer)
        saves.end()
    with (tmp_path / "checkpoint" / "step-2" / ".metadata").open("ab") as file:
        file.write(b"?")
    again, fresh, _, _ = joined(tmp_path)
    again.restore(ASSIGN, fresh)
    assert fresh.step == 1
    (record,) = records(tmp_path / "checkpoint")
    assert (record.id, record.verdict, record.remedy) == ("CKPT-2-refused", "refused", "went on from step 1")


def test_what_was_saved_after_the_last_state_that_is_trusted_is_set_aside(tmp_path: Path) -> None:
    saves, trainer, _, _ = joined(tmp_path)
    for _ in range(2):
        one_step(trainer)
        saves.begin()
        saves.settle()
    folder = tmp_path / "checkpoint"
    assert [path.name for path in checkpoint.checkpoints(folder)] == ["step-2", "step-1"]
    again, fresh, _, _ = joined(tmp_path)
    again.restore(msgspec.structs.replace(ASSIGN, verified=0), fresh)
    assert fresh.step == 1, "one step is finished, the one that is verified"
    assert [path.name for path in checkpoint.checkpoints(folder)] == ["step-1"]
    assert (folder / "distrusted-step-2" / "seal.json").exists(), "kept for people"
    told = [line["step"] for line in read_lines(tmp_path / "events.jsonl") if line["kind"] == "checkpoint.set_aside"]
    assert told == ["step-2"]
    last, fresh, _, _ = joined(tmp_path)
    last.restore(msgspec.structs.replace(ASSIGN, verified=-1), fresh)
    assert fresh.step == 0 and not checkpoint.checkpoints(folder), "nothing is trusted: from the start"
