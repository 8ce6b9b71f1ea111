from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from pathlib import Path

import pytest
import torch

from ninthsky.errors import UserError
from ninthsky.model import Decoder, Shape
from ninthsky.train import checkpoint
from ninthsky.train.loop import Gate, Recipe, Trainer
from ninthsky.train.loss import next_token_loss
from tests.train.small import cursor, model


def trained(steps: int, seed: int = 0) -> Trainer:
    trainer = Trainer(model(seed), next_token_loss, Recipe(), 10)
    for step in range(steps):
        trainer.local_gradients(cursor().read(step))
        trainer.apply(Gate.total([trainer.gate_values()]))
    return trainer


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with step-1 and step-2."""
    folder = tmp_path_factory.mktemp("checkpoints")
    trainer = trained(1)
    assert checkpoint.save(trainer, folder).path == folder / "step-1"
    trainer.local_gradients(cursor().read(1))
    trainer.apply(Gate.total([trainer.gate_values()]))
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
    write = checkpoint._write

    def lying(trainer: Trainer, partial: Path) -> None:
        write(trainer, partial)
        tensor = trainer.pieces[3].local.view(-1)
        tensor[5] *= -1  # what lies in memory is now not what was written

    monkeypatch.setattr(checkpoint, "_write", lying)
    trainer.step = 2
    saved = checkpoint.save(trainer, tmp_path, keep=1)
    assert saved.path is None and "came back from the disk" in saved.problem
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"] and not checkpoint.check(tmp_path / "step-1")


def test_weights_alone_are_read_into_a_model(two: Path) -> None:
    made = model(seed=8)
    assert checkpoint.load_weights(made, two / "step-2") == 2
    wanted = trained(2).whole_state()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in made.state_dict().items())
    with pytest.raises(UserError, match="N9-TRN-003"):
        checkpoint.load_weights(made, two / "step-9")


def test_attack(two: Path, tmp_path: Path) -> None:
    """200 truncations, bit flips, deletions: none is loaded as good, and the good one before is found."""
    chance = random.Random(0)
    good_digest = trained(1).digest()
    names = sorted(path.name for path in (two / "step-2").iterdir())
    assert checkpoint.SEAL in names and ".metadata" in names
    for attempt in range(200):
        folder = tmp_path / str(attempt)
        shutil.copytree(two / "step-2", folder / "step-2")
        os.symlink(two / "step-1", folder / "step-1")
        victim = folder / "step-2" / chance.choice(names)
        whole = bytearray(victim.read_bytes())
        kind = chance.choice(["cut", "flip", "delete", "empty", "longer", "swap"])
        if kind == "cut":
            victim.write_bytes(whole[: chance.randrange(len(whole))])
        elif kind == "flip":
            whole[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
            victim.write_bytes(whole)
        elif kind == "delete":
            victim.unlink()
        elif kind == "empty":
            victim.write_bytes(b"")
        elif kind == "longer":
            victim.write_bytes(whole + b"\0")
        else:
            at = chance.randrange(len(whole) - 1)
            whole[at : at + 2] = bytes([whole[at] ^ 1, whole[at + 1] ^ 1])
            victim.write_bytes(whole)
        if kind == "flip" and victim.name == checkpoint.SEAL and _same_seal(victim, two):
            continue  # white space of the seal: nothing has changed
        found, refused = checkpoint.newest_good(folder)
        assert found == folder / "step-1" and refused.get("step-2"), f"{attempt}: {kind} of {victim.name}"
    trainer = Trainer(model(seed=3), next_token_loss, Recipe(), 10)
    restored = checkpoint.restore(trainer, folder)
    assert restored.step == 1 and "step-2" in restored.refused and trainer.digest() == good_digest


def _same_seal(changed: Path, two: Path) -> bool:
    try:
        return bool(json.loads(changed.read_bytes()) == json.loads((two / "step-2" / checkpoint.SEAL).read_bytes()))
    except ValueError:
        return False


def test_a_checkpoint_under_another_s_name_is_refused(two: Path, tmp_path: Path) -> None:
    shutil.copytree(two / "step-1", tmp_path / "step-5")
    assert "altered" in checkpoint.check(tmp_path / "step-5")


def test_a_checkpoint_of_another_model_is_told(two: Path) -> None:
    other = Decoder(Shape(97, 2, 32, 4, 2, 4, 2, 24, dense_layers=1, dense_dim=64))
    with pytest.raises(UserError, match="N9-TRN-003"):
        checkpoint.restore(Trainer(other, next_token_loss, Recipe(), 10), two)


def test_metadata_cannot_run_code(two: Path, tmp_path: Path) -> None:
    """A pickle that calls a function is refused even where its checksum was forged along."""

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "was-run"),)

    shutil.copytree(two / "step-2", tmp_path / "step-2")
    (tmp_path / "step-2" / ".metadata").write_bytes(pickle.dumps(Evil()))
    (tmp_path / "step-2" / checkpoint.SEAL).unlink()
    checkpoint._seal(tmp_path / "step-2", 2, {})
    assert checkpoint.check(tmp_path / "step-2") == ""
    with pytest.raises(UserError, match="no place in a checkpoint"):
        checkpoint.restore(trained(0), tmp_path)
    assert not (tmp_path / "was-run").exists()
