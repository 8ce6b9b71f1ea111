from __future__ import annotations

import json
import shlex
import threading
from pathlib import Path

import pytest

from ninthsky.guard.out.drain import advice, commands, drain, scheduler_here


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the whole PATH, but for what a shell needs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def put_command(folder: Path, name: str, status: int = 0) -> Path:
    log = folder.parent / f"{name}.log"
    script = folder / name
    script.write_text(
        f'#!/bin/sh\nfor word in "$@"; do printf "%s\\n" "$word" >> {log}; done\necho denied >&2\nexit {status}\n'
    )
    script.chmod(0o755)
    return log


def told_by(scheduler: str, reason: str) -> tuple[bool, list[tuple[bool, str]]]:
    told: list[tuple[bool, str]] = []
    call = drain(scheduler, "node-7", reason, lambda done, text: told.append((done, text)))  # type: ignore[arg-type]
    return call(threading.Event()), told


def test_slurm_is_ordered_in_words_that_no_shell_reads(bin_folder: Path) -> None:
    log = put_command(bin_folder, "scontrol")
    reason = "card node-7/3: $(touch /tmp/x) failed\n" + "x" * 500
    assert told_by("slurm", reason) == (True, [(True, "")])
    words = log.read_text().splitlines()
    assert words[:3] == ["update", "nodename=node-7", "state=drain"] and len(words) == 4
    assert words[3].startswith("reason=ninthsky: card node-7/3: $(touch /tmp/x) failed ") and len(words[3]) < 190


def test_kubernetes_gets_a_cordon_and_a_condition(bin_folder: Path) -> None:
    log = put_command(bin_folder, "kubectl")
    assert told_by("kubernetes", "it failed 2 times")[0]
    words = log.read_text().splitlines()
    assert words[:3] == ["cordon", "--", "node-7"]
    patch = json.loads(words[-1].removeprefix("--patch="))
    (condition,) = patch["status"]["conditions"]
    assert (condition["type"], condition["status"]) == ("NinthskyFault", "True") and "2 times" in condition["message"]


def test_a_refusal_or_an_absent_command_is_told(bin_folder: Path) -> None:
    put_command(bin_folder, "scontrol", status=1)
    done, told = told_by("slurm", "x")
    assert not done and not told[0][0] and "status 1: denied" in told[0][1]
    done, told = told_by("kubernetes", "x")
    assert not done and "kubectl" in told[0][1]


def test_the_advice_can_be_pasted() -> None:
    text = advice("node-7", "card's memory; rm -rf /", "slurm")
    words = shlex.split(text.removeprefix("advised: "))
    assert words == commands("slurm", "node-7", "card's memory; rm -rf /")[0]
    assert "kubectl cordon" in advice("node-7", "x", "kubernetes")
    assert [scheduler_here(e) for e in ({"SLURM_JOB_ID": "1"}, {"KUBERNETES_SERVICE_HOST": "x"}, {})] == [
        "slurm",
        "kubernetes",
        None,
    ]
