from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

from benchmarks.attack import attack
from ninthsky.errors import UserError
from ninthsky.model import Decoder, Shape
from ninthsky.train.state import checkpoint
from ninthsky.train.state.checkpoint import writing
from ninthsky.train.state.checkpoint.seal import describe, seal
from ninthsky.train.step.loop import Gate, Recipe, Trainer
from ninthsky.train.step.loss import next_token_loss
from tests.train.small import cursor, model


def trained(steps: int, seed: int = 0) -> Trainer:
    trainer = Trainer(model(seed), next_token_loss, Recipe(), 10)
    for _ in range(steps):
        one_step(trainer)
    return trainer


def one_step(trainer: Trainer) -> None:
    trainer.local_gradients(cursor().read(trainer.step))
    trainer.apply(Gate.total([trainer.gate_values()]))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with step-1 and step-2."""
    folder = tmp_path_factory.mktemp("checkpoints")
    trainer = trained(1)
    assert checkpoint.save(trainer, folder).path == folder / "step-1"
    one_step(trainer)
    assert not checkpoint.save(trainer, folder).problem
    return folder


def test_what_was_saved_is_restored_with_moments_and_step(two: Path) -> None:
    wanted, got = trained(2), Trainer(model(seed=7), next_token_loss, Recipe(), 10)
    restored = checkpoint.restore(got, two)
    assert (restored.step, restored.path, restored.refused) == (2, two / "step-2", {})
    assert all(torch.equal(tensor, got.state_shard()[name]) for name, tensor in wanted.state_shard().items())


def test_an_empty_folder_leaves_the_trainer_alone(tmp_path: Path) -> None:
    trainer = trained(0)
    before = trainer.digest()
    assert checkpoint.restore(trainer, tmp_path / "none").path is None
    assert trainer.digest() == before and trainer.step == 0


def test_older_ones_go_and_leftovers_are_overwritten(tmp_path: Path) -> None:
    trainer = trained(0)
    (tmp_path / ".step-3.part").mkdir(parents=True)
    (tmp_path / ".step-3.part" / "__0_0.distcp").write_text("left by a kill")
    for step in range(4):
        trainer.step = step
        assert not checkpoint.save(trainer, tmp_path).problem
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-2", "step-3"]


def test_state_that_is_not_finite_never_replaces_a_good_one(tmp_path: Path) -> None:
    trainer = trained(1)
    checkpoint.save(trainer, tmp_path)
    trainer.pieces[4].local.view(-1)[3] = float("nan")
    trainer.step = 2
    saved = checkpoint.save(trainer, tmp_path, keep=1)
    assert saved.path is None and "not finite" in saved.problem
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def test_moments_count_too(tmp_path: Path) -> None:
    trainer = trained(1)
    name = next(name for name in trainer.state_shard() if name.startswith("exp_avg_sq/"))
    trainer.state_shard()[name].view(-1)[0] = float("inf")
    assert "not finite" in checkpoint.save(trainer, tmp_path).problem


def test_who_may_not_commit_leaves_nothing(tmp_path: Path) -> None:
    trainer = trained(1)
    saved = checkpoint.save(trainer, tmp_path, may_commit=lambda: False)
    assert saved.path is None and "may no longer commit" in saved.problem
    assert list(tmp_path.iterdir()) == []


def test_a_save_that_fails_is_told_and_not_raised(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    saved = checkpoint.save(trained(1), blocked)
    assert saved.path is None and saved.problem


def test_a_disk_that_lies_is_caught_before_the_older_one_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trained(1)
    checkpoint.save(trainer, tmp_path, keep=1)
    write = writing._Writer.write_data

    def lying(self: Any, plan: Any, planner: Any) -> Any:
        done = write(self, plan, planner)
        (path,) = Path(self.path).glob("*.distcp")
        raw = bytearray(path.read_bytes())
        raw[raw.index(trainer.pieces[3].local.numpy().tobytes()) + 5] ^= 4
        path.write_bytes(raw)
        return done

    monkeypatch.setattr(writing._Writer, "write_data", lying)
    trainer.step = 2
    saved = checkpoint.save(trainer, tmp_path, keep=1)
    assert saved.path is None and "came back from the disk" in saved.problem
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"] and not checkpoint.check(tmp_path / "step-1")


def test_training_goes_on_while_it_is_written_and_what_is_written_is_the_state_of_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write = threading.Event()
    write = writing.Part.write

    def slow(*arguments: Any) -> Any:
        assert may_write.wait(30)
        return write(*arguments)

    monkeypatch.setattr(writing.Part, "write", slow)
    trainer = trained(1)
    wanted = trainer.digest()
    saver = checkpoint.Saver(trainer, tmp_path)
    assert saver.begin({"note": b"1"}) == ""
    one_step(trainer)
    assert saver.begin().startswith("skipped: the checkpoint of step 1 is still being written")
    assert saver.advance(lambda step: None, lambda step: True) is None and not checkpoint.checkpoints(tmp_path)
    may_write.set()
    asked: list[int] = []
    answers = iter([None, None, True])
    saved = None
    while saved is None:
        saved = saver.advance(asked.append, lambda step: next(answers))
        time.sleep(0.002)
    assert (saved.path, asked, saver.under_way) == (tmp_path / "step-1", [1], False)
    assert trainer.digest() != wanted and saver.finish() is None
    fresh = Trainer(model(seed=7), next_token_loss, Recipe(), 10)
    assert checkpoint.restore(fresh, tmp_path).step == 1 and fresh.digest() == wanted
    assert (tmp_path / "step-1" / "note").read_bytes() == b"1"


def test_an_ended_generation_leaves_nothing_visible_and_the_next_save_clears_up(tmp_path: Path) -> None:
    trainer = trained(1)
    saver = checkpoint.Saver(trainer, tmp_path)
    assert saver.begin() == ""
    saver.cancel()
    assert saver.advance(lambda step: None, lambda step: True) is None and saver.finish() is None
    assert not checkpoint.checkpoints(tmp_path)
    assert checkpoint.save(trainer, tmp_path).problem == ""
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def test_a_refusal_after_the_seal_keeps_the_older_one(tmp_path: Path) -> None:
    trainer = trained(1)
    checkpoint.save(trainer, tmp_path, keep=1)
    trainer.step = 2
    saver = checkpoint.Saver(trainer, tmp_path, keep=1)
    assert saver.begin() == ""
    saved = None
    while saved is None:
        saved = saver.advance(lambda step: None, lambda step: False)
        time.sleep(0.002)
    assert saved.problem == "this generation may no longer commit" and saver.finish() is None
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step-1"]


def test_a_question_without_an_answer_is_asked_again_at_the_end(tmp_path: Path) -> None:
    saver = checkpoint.Saver(trained(1), tmp_path)
    assert saver.begin() == ""
    asked: list[int] = []
    while not asked:
        assert saver.advance(asked.append, lambda step: None) is None
    saved = saver.finish(lambda: False)
    assert saved is not None and saved.problem == "this generation may no longer commit"
    assert not checkpoint.checkpoints(tmp_path)


def test_ranks_that_do_not_fit_together_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> Any:
        raise ValueError("two ranks hold the same part")

    monkeypatch.setattr(DefaultSavePlanner, "create_global_plan", refuse)
    assert "two ranks hold the same part" in checkpoint.save(trained(1), tmp_path).problem
    assert list(tmp_path.iterdir()) == []


def test_the_same_step_saved_again_replaces_what_stood_there(tmp_path: Path) -> None:
    trainer = trained(1)
    checkpoint.save(trainer, tmp_path)
    trainer.pieces[3].local.mul_(2)
    checkpoint.save(trainer, tmp_path)
    fresh = Trainer(model(seed=7), next_token_loss, Recipe(), 10)
    checkpoint.restore(fresh, tmp_path)
    assert fresh.digest() == trainer.digest()
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def test_weights_alone_are_read_into_a_model(two: Path) -> None:
    made = model(seed=8)
    assert checkpoint.load_weights(made, two / "step-2") == 2
    wanted = trained(2).whole_state()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in made.state_dict().items())
    with pytest.raises(UserError, match="N9-TRN-003"):
        checkpoint.load_weights(made, two / "step-9")


def test_attack(tmp_path: Path) -> None:
    """24 of the 200 of `python -m benchmarks.state`: none is loaded as good, and the newest good one is found."""
    chance = random.Random(0)
    trainer, digests = trained(1), {}
    for _ in range(3):
        checkpoint.save(trainer, tmp_path / "whole", keep=3)
        digests[trainer.step] = trainer.digest()
        one_step(trainer)
    seen: set[str] = set()
    for number in range(24):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", folder)
        damaged = attack(folder, chance)
        seen |= set(damaged.values())
        wanted = max(step for step in digests if f"step-{step}" not in damaged)
        restored = checkpoint.restore(trainer, folder)
        assert (restored.step, trainer.digest()) == (wanted, digests[wanted]), damaged
        assert restored.refused.keys() == {name for name in damaged if int(name[5:]) > wanted and (folder / name).exists()}
    assert len(seen) > 8


@pytest.mark.parametrize(("number", "told"), [(2, "newer release"), (0, "the release that wrote it"), ("1", "none that this")])
def test_another_format_is_told_as_such(two: Path, tmp_path: Path, number: Any, told: str) -> None:
    shutil.copytree(two / "step-2", tmp_path / "step-2")
    seal = json.loads((two / "step-2" / checkpoint.SEAL).read_bytes())
    (tmp_path / "step-2" / checkpoint.SEAL).write_text(json.dumps(seal | {"format": number}))
    assert told in checkpoint.check(tmp_path / "step-2")


def test_a_checkpoint_under_another_s_name_is_refused(two: Path, tmp_path: Path) -> None:
    shutil.copytree(two / "step-1", tmp_path / "step-5")
    assert "altered" in checkpoint.check(tmp_path / "step-5")


def test_a_checkpoint_of_another_model_is_told(two: Path) -> None:
    other = Decoder(Shape(97, 2, 32, 4, 2, 4, 2, 24, dense_layers=1, dense_dim=64))
    with pytest.raises(UserError, match="N9-TRN-003"):
        checkpoint.restore(Trainer(other, next_token_loss, Recipe(), 10), two)


class Calls:
    """A pickle that calls something."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def through_a_module(folder: Path) -> bytes:
    """`filesystem` imports `os`: a dotted name would lead there."""
    names = b"".join(b"\x8c" + bytes([len(name)]) + name for name in (filesystem.__name__.encode(), b"os.mkdir"))
    return b"\x80\x04" + names + b"\x93" + f"V{folder / 'was-run'}\n".encode() + b"\x85R."


@pytest.mark.parametrize("way", ["plainly", "through a module", "through a pickle in it", "through getattr"])
def test_metadata_cannot_run_code(two: Path, tmp_path: Path, way: str) -> None:
    """A pickle that calls a function is refused even where its checksum was forged along."""
    plainly = pickle.dumps(Calls(os.mkdir, str(tmp_path / "was-run")))
    pickles = {
        "plainly": plainly,
        "through a module": through_a_module(tmp_path),
        "through a pickle in it": pickle.dumps(Calls(torch.storage._load_from_bytes, plainly)),
        "through getattr": pickle.dumps(Calls(getattr, torch.Size, "mro")),
    }
    shutil.copytree(two / "step-2", tmp_path / "step-2")
    (tmp_path / "step-2" / ".metadata").write_bytes(pickles[way])
    (tmp_path / "step-2" / checkpoint.SEAL).unlink()
    seal(tmp_path / "step-2", 2, {path.name: describe(path) for path in (tmp_path / "step-2").iterdir()})
    assert checkpoint.check(tmp_path / "step-2") == ""
    with pytest.raises(UserError, match="no place in a checkpoint"):
        checkpoint.restore(trained(0), tmp_path)
    assert not (tmp_path / "was-run").exists()
