from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ninthsky.errors import UserError
from ninthsky.train.step.loop import History, Recipe, fit
from ninthsky.train.step.loss import next_token_loss
from tests.train.small import cursor, model

STEPS = 14
RECIPE = Recipe(lr=2e-2)


def run(folder: Path | None, steps: int = STEPS, **more: Any) -> History:
    return fit(model(), cursor().read, next_token_loss, RECIPE, steps, folder=folder, checkpoint_every=4, **more)


def test_fit_learns_and_a_folder_changes_nothing(tmp_path: Path) -> None:
    plain, kept = run(None), run(tmp_path)
    assert plain.digest == kept.digest and plain.losses == kept.losses
    assert plain.losses[-1] < plain.losses[0] - 0.3
    again = run(tmp_path)  # finished already: nothing is done, the same is given back
    assert again.resumed_from == STEPS and again.digest == plain.digest and again.steps == plain.steps


@pytest.mark.parametrize("at", [1, 5, 8, 13])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path, at: int) -> None:
    class Interrupted(Exception):
        pass

    class Progress:
        done = 0.0

        def advance(self, count: float = 1, **figures: Any) -> None:
            self.done += count
            if self.done == at:
                raise Interrupted

        def note(self, text: str) -> None: ...
        def finish(self) -> None: ...

    with pytest.raises(Interrupted):
        run(tmp_path, progress=Progress())
    resumed, whole = run(tmp_path), run(None)
    assert resumed.resumed_from == (at - 1) // 4 * 4  # told of a step before it is saved
    assert resumed.digest == whole.digest and resumed.steps == whole.steps


def test_the_newest_checkpoint_damaged_costs_steps_and_not_the_result(tmp_path: Path) -> None:
    whole = run(tmp_path)
    path = next((tmp_path / f"step-{STEPS}").glob("*.distcp"))
    path.write_bytes(path.read_bytes()[:-7])
    again = run(tmp_path)
    assert again.resumed_from == 12 and again.digest == whole.digest and again.steps == whole.steps


def test_the_history_is_sealed_with_the_state(tmp_path: Path) -> None:
    whole = run(tmp_path)
    (tmp_path / f"step-{STEPS}" / "history.jsonl").write_text("")
    again = run(tmp_path)
    assert again.resumed_from == 12 and again.digest == whole.digest and again.steps == whole.steps


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    def loss(made: Any, batch: torch.Tensor) -> tuple[torch.Tensor, float]:
        total, count = next_token_loss(made, batch)
        return total * (float("nan") if torch.equal(batch, cursor().read(6)) else 1.0), count

    with pytest.raises(UserError, match=r"N9-TRN-002.*step 6"):
        fit(model(), cursor().read, loss, RECIPE, STEPS, folder=tmp_path, checkpoint_every=4)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-4"]


def test_bf16_trains_too() -> None:
    history = fit(model(), cursor().read, next_token_loss, Recipe(lr=2e-2, precision="bf16"), STEPS)
    assert history.losses[-1] < history.losses[0] - 0.3
    assert abs(history.losses[-1] - run(None).losses[-1]) < 0.1


PROGRAM = """
import json, sys, torch
from pathlib import Path
from ninthsky.train.step.loop import Recipe, fit
from ninthsky.train.step.loss import next_token_loss
from tests.train.small import cursor, model
torch.set_num_threads(1)
history = fit(model(), cursor().read, next_token_loss, Recipe(), 120, folder=Path(sys.argv[1]), checkpoint_every=5)
print(json.dumps([history.digest, history.losses]))
"""


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed_to_the_bit(tmp_path: Path) -> None:
    command, root = [sys.executable, "-c", PROGRAM], Path(__file__).parents[2]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    wanted = subprocess.run([*command, str(tmp_path / "whole")], cwd=root, env=env, capture_output=True, check=True).stdout
    chance, kills = random.Random(1), 0
    for _ in range(12):
        process = subprocess.Popen([*command, str(tmp_path / "killed")], cwd=root, env=env, stdout=subprocess.PIPE)
        # Imports come first: wait until it works, then kill at a random moment of the work.
        before = set((tmp_path / "killed").glob("step-*"))
        until = time.monotonic() + 60
        while process.poll() is None and set((tmp_path / "killed").glob("step-*")) == before and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.3))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        if kills == 3:
            break
    process = subprocess.Popen([*command, str(tmp_path / "killed")], cwd=root, env=env, stdout=subprocess.PIPE)
    output, _ = process.communicate(timeout=200)
    assert kills >= 2
    assert json.loads(output) == json.loads(wanted)
