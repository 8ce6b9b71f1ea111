"""`kill -9` at random moments, five times, and `n9 run` again: the result is that of a run left alone, byte for byte."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from ninthsky.road import stages
from ninthsky.run.folder import RunFolder, read_json
from tests.conftest import ROOT
from tests.test_house import BIN

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# Steps are given, not measured: a budget would fix another number in each of the two runs.
SETTINGS = {
    "size": "nano", "data.max_pages": 96, "train.steps": 40, "train.checkpoint_every": 10, "train.precision": "fp32",
    "align.sft_steps": 30, "align.dpo_steps": 12, "align.prompts": 20, "signal.steps": 30, "radio.stations": 60,
    "radio.steps": 40,
}  # fmt: skip
KILLS = 5


def command(file: Path) -> list[str]:
    overrides = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    return [str(BIN / "n9"), "run", str(file), *overrides]


def lasting(folder: RunFolder) -> dict[str, str]:
    """Digest of every output of every stage, but for times and speeds."""
    found: dict[str, str] = {}
    for stage in stages():
        manifest = read_json(folder.stage(stage.name) / "manifest.json")
        assert manifest is not None, f"{stage.name} did not finish"
        found |= {f"{stage.name}/{name}": row["xxh3"] for name, row in manifest["outputs"].items() if not row["volatile"]}
    return found


def left_alive(place: Path) -> list[int]:
    """Processes that still work for the run in `place`."""
    processes = psutil.process_iter(["cwd"])
    return [process.pid for process in processes if process.pid != os.getpid() and process.info["cwd"] == str(place)]


def test_killed_at_random_points(tmp_path: Path) -> None:
    chance = random.Random(11)
    folders: dict[str, RunFolder] = {}
    for name in ("whole", "killed"):
        place = tmp_path / name
        place.mkdir()
        shutil.copyfile(ROOT / "src/ninthsky/demo.toml", place / "run.toml")
        folders[name] = RunFolder(place / "runs" / "demo")
    began = time.monotonic()
    done = subprocess.run(command(Path("run.toml")), cwd=tmp_path / "whole", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    length = time.monotonic() - began
    kills = 0
    for _ in range(KILLS):
        process = subprocess.Popen(
            command(Path("run.toml")), cwd=tmp_path / "killed", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(timeout=chance.uniform(0.02, 0.35) * length)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        deadline = time.monotonic() + 20
        while (alive := left_alive(tmp_path / "killed")) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert alive == [], "what a killed run had started lives on"
    done = subprocess.run(command(Path("run.toml")), cwd=tmp_path / "killed", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert kills >= 3
    whole, killed = lasting(folders["whole"]), lasting(folders["killed"])
    assert {name for name in whole.keys() | killed.keys() if whole.get(name) != killed.get(name)} == set()
