from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.train.vet.on_device import SAMPLE

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.train.vet.on_device", str(tmp_path_factory.mktemp("checkpoints"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    answers: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answers


def test_a_good_device_passes_everything(seen: dict[str, Any]) -> None:
    assert seen["a_good_device"] == []


@pytest.mark.parametrize("name", SAMPLE)
def test_a_planted_fault_is_found_and_the_innocent_are_not_blamed(seen: dict[str, Any], name: str) -> None:
    from ninthsky.train.vet.heldback import FAULTS

    failed = seen["found_faults"][name]
    assert failed and set(failed) <= set(FAULTS[name].blamed)


def test_the_trainer_trains_there(seen: dict[str, Any]) -> None:
    trained = seen["trained"]
    assert trained["placed"] == ["simulated"]
    assert trained["losses"]["simulated"] == pytest.approx(trained["losses"]["cpu"], rel=1e-5)
    assert seen["carried_over"], "a checkpoint of the device is read on the CPU, to the same digest"


def test_the_device_is_taken_only_where_it_is_named(seen: dict[str, Any]) -> None:
    assert seen["default"] == "cpu"


def test_the_workaround_works(seen: dict[str, Any]) -> None:
    assert seen["detoured"] == {"before": ["top k"], "on host": [], "after": ["top k"]}


def test_the_golden_run_passes_on_a_sound_device_and_fails_on_another(seen: dict[str, Any]) -> None:
    assert seen["golden"]["sound"] == ""
    assert "step" in seen["golden"]["wrong"]


def test_quick(seen: dict[str, Any]) -> None:
    sound, wrong, host = (seen["quickly"][name] for name in ("sound", "wrong", "host"))
    assert sound["good"] and host["good"] and not wrong["good"]
    assert "places" in wrong["problem"]
    assert sound["digests"] == host["digests"], "a digest is the same on every sound device"
