from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ninthsky.model import Decoder, Shape
from ninthsky.model.files import save
from ninthsky.radio.fast import LEVELS, site_roots
from ninthsky.radio.made import FIRST_DAY, make_shard
from ninthsky.radio.transformer import Forecaster, Learner, Windows, pinball_loss
from ninthsky.run.progress import PlainScreen

SHAPE = Shape(vocab=64, layers=2, dim=16, heads=2, kv_heads=1, experts=4, experts_per_token=2, expert_dim=16, dense_dim=32)


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    save(Decoder(SHAPE, seed=1), folder)
    return folder


@pytest.fixture(scope="module")
def roots() -> np.ndarray:
    return site_roots(make_shard(0, 30, 3, 28, seed=2))


def test_quantiles_cannot_cross(roots: np.ndarray) -> None:
    model = Forecaster(Decoder(SHAPE, seed=1), seed=1)
    torch.nn.init.normal_(model.quantiles.weight, std=2.0)
    batch, _, _ = Windows(roots, FIRST_DAY).cut(np.arange(30), np.full(30, 20))
    with torch.no_grad():
        said = model(batch)
    assert said.shape == (30, 24, len(LEVELS))
    assert (said.diff(dim=-1) >= 0).all()


def test_a_forecast_reads_the_days_before_it_alone(export: Path, roots: np.ndarray) -> None:
    learner = Learner(export, roots, FIRST_DAY, seed=3)
    changed = roots.copy()
    changed[:, 20 * 24 :] = 3.0
    before = learner.quantiles(roots, FIRST_DAY, 20)
    assert (learner.quantiles(changed, FIRST_DAY, 20) == before).all()
    changed[:, 19 * 24 + 5] = 3.0
    assert not (learner.quantiles(changed, FIRST_DAY, 20) == before).all()


def test_the_day_after_the_last_can_be_asked_for(export: Path, roots: np.ndarray) -> None:
    learner = Learner(export, roots, FIRST_DAY, seed=3)
    assert np.isfinite(learner.quantiles(roots, FIRST_DAY, 28)).all()


def test_training_draws_targets_before_its_end_and_the_same_ones_again(export: Path, roots: np.ndarray) -> None:
    learner = Learner(export, roots, FIRST_DAY, seed=3)
    late = roots.copy()
    late[:, 14 * 24 :] = 3.0
    other = Learner(export, late, FIRST_DAY, seed=3)
    for step in range(5):
        one, two = learner.batch_at(14, step), other.batch_at(14, step)
        assert torch.equal(one.truth, two.truth) and torch.equal(one.patches, two.patches)
    assert not torch.equal(learner.batch_at(14, 0).truth, learner.batch_at(14, 1).truth)


def test_unknown_hours_have_no_say_in_the_loss(export: Path, roots: np.ndarray) -> None:
    holed = roots.copy()
    holed[:, 20 * 24 : 20 * 24 + 12] = -1
    batch, _, _ = Windows(holed, FIRST_DAY).cut(np.arange(30), np.full(30, 20))
    total, count = pinball_loss(Forecaster(Decoder(SHAPE, seed=1), seed=1), batch)
    assert int(count) <= 30 * 12
    assert torch.isfinite(total)


def test_it_learns(export: Path, roots: np.ndarray, tmp_path: Path) -> None:
    learner = Learner(export, roots, FIRST_DAY, seed=3)
    losses = learner.learn(20, 60, PlainScreen().task("learn", 60, "steps"), tmp_path)
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])


def test_it_can_forecast_before_it_learns_on(export: Path, roots: np.ndarray, tmp_path: Path) -> None:
    """As after a kill between the two parts of the training: the first thing that the process does is to forecast."""
    learner = Learner(export, roots, FIRST_DAY, seed=3)
    before = learner.quantiles(roots, FIRST_DAY, 20)
    learner.learn(20, 3, PlainScreen().task("learn", 3, "steps"), tmp_path)
    assert not (learner.quantiles(roots, FIRST_DAY, 20) == before).all()


KILLED = """
import sys
from pathlib import Path
import numpy as np
from ninthsky.radio.fast import site_roots
from ninthsky.radio.made import FIRST_DAY, make_shard
from ninthsky.radio.transformer import Learner
from ninthsky.run.progress import PlainScreen
roots = site_roots(make_shard(0, 30, 3, 28, seed=2))
learner = Learner(Path(sys.argv[1]), roots, FIRST_DAY, seed=3)
learner.learn(20, 130, PlainScreen().task("learn", 130, "steps"), Path(sys.argv[2]))
learner.learn(24, 20, PlainScreen().task("learn", 20, "steps"), Path(sys.argv[2]) / "later")
np.save(sys.argv[3], learner.quantiles(roots, FIRST_DAY, 28))
"""


@pytest.mark.slow
def test_killed_and_started_again_it_ends_in_the_same_bits(export: Path, tmp_path: Path) -> None:
    def start(name: str) -> subprocess.Popen[bytes]:
        arguments = [sys.executable, "-c", KILLED, str(export), str(tmp_path / name), str(tmp_path / f"{name}.npy")]
        return subprocess.Popen(arguments, env={**os.environ, "OMP_NUM_THREADS": "1"})

    assert start("whole").wait(timeout=120) == 0
    cut = start("cut")
    deadline = time.monotonic() + 120
    while not list((tmp_path / "cut").glob("step-*")) and cut.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    cut.send_signal(signal.SIGKILL)
    cut.wait()
    assert not (tmp_path / "cut.npy").exists()
    assert start("cut").wait(timeout=120) == 0
    assert (np.load(tmp_path / "whole.npy") == np.load(tmp_path / "cut.npy")).all()
