"""The manifests, run here: Slurm's script against stand-ins for its commands, and what JobSet's pods start."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ninthsky.guard.picture import FILE, read_picture
from ninthsky.run.folder import read_json
from tests.conftest import ROOT
from tests.guard.out.receiver import Receiver

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]
DEPLOY = ROOT / "deploy"


def environment(tmp_path: Path, inject: list[dict[str, Any]], **more: str) -> dict[str, str]:
    """The project's Python first, stand-ins before everything, a short plan for simulated ranks."""
    (tmp_path / "marks").mkdir()
    plan = {"steps": 12, "work_ms": 5.0, "marks": str(tmp_path / "marks"), "inject": inject}
    path = f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "N9_SIMULATED": json.dumps(plan), "PAGE_PORT": "0", **more}


def stand_in(tmp_path: Path, name: str, script: str) -> None:
    (tmp_path / "bin").mkdir(exist_ok=True)
    path = tmp_path / "bin" / name
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)


def test_slurms_script_runs_a_job_mends_it_and_calls_people(tmp_path: Path, receiver: Receiver) -> None:
    stand_in(tmp_path, "scontrol", '[ "$*" = "show hostnames localhost" ] && echo localhost')
    stand_in(tmp_path, "srun", f'echo "$@" >> {tmp_path}/srun.log; while [[ "$1" == --* ]]; do shift; done; exec "$@"')
    run = subprocess.run(
        ["bash", DEPLOY / "slurm.sbatch", tmp_path / "job", "python", "-m", "ninthsky.guard.drill.simulated_rank"],
        env=environment(
            tmp_path, [{"kind": "kill", "rank": 1, "step": 5}], SLURM_JOB_ID=f"9{os.getpid()}", SLURM_JOB_NODELIST="localhost",
            CARDS="3", N9_ACTION="act", N9_WEBHOOK=receiver.url,
        ),
        capture_output=True, text=True, check=False, timeout=80,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    result = read_json(tmp_path / "job" / "result.json")
    assert result is not None and result["ok"] and len(result["results"]) == 2
    picture = read_picture(tmp_path / "job" / FILE)
    assert picture is not None and picture.head.stage == "done", "the last picture is of the end"
    assert picture.head.step in {10, 11} and picture.head.evictions == 1
    told = [alert for _, _, body in receiver.taken for alert in body["alerts"]]
    assert [(alert["status"], alert["annotations"]["cause"]) for alert in told] == [("firing", "exit"), ("resolved", "exit")]
    assert "--nodelist=localhost" in (tmp_path / "srun.log").read_text()
    assert "/login#" in (tmp_path / "job" / "page.log").read_text()


def test_jobsets_pods_find_each_other_and_run_the_job(tmp_path: Path) -> None:
    jobset, config = yaml.safe_load_all((DEPLOY / "jobset.yaml").read_text())
    script = tmp_path / "start.py"
    script.write_text(config["data"]["start.py"])
    parts = {
        job["name"]: job["template"]["spec"]["template"]["spec"]["containers"][0] for job in jobset["spec"]["replicatedJobs"]
    }
    given = {part["name"] for part in parts["host"]["env"]}
    assert given >= set(re.findall(r"os\.environ\[['\"](\w+)['\"]\]", script.read_text()))
    assert [part["command"][-1] for part in parts.values()] == ["controller", "host"]
    port = _free_port()
    made = environment(
        tmp_path, [], FOLDER=str(tmp_path / "job"), HOSTS="2", CARDS="2",
        COMMAND=f"{sys.executable} -m ninthsky.guard.drill.simulated_rank",
        ACTION="act", CONTROLLER=f"127.0.0.1:{port}", ADDRESS="127.0.0.1", NODE="worker-1", RUN=f"pods-{os.getpid()}",
    )  # fmt: skip
    pods: list[subprocess.Popen[Any]] = []
    with (tmp_path / "log").open("wb") as log:
        for role, number in (("controller", "0"), ("host", "0"), ("host", "1")):
            pods.append(
                subprocess.Popen([sys.executable, script, role], env={**made, "NUMBER": number}, stdout=log, stderr=log)
            )
        try:
            statuses = [pod.wait(60) for pod in pods]
        finally:
            for pod in pods:
                pod.kill()
    assert statuses == [0, 0, 0], (tmp_path / "log").read_text()
    result = read_json(tmp_path / "job" / "result.json")
    assert result is not None and result["ok"] and len(result["results"]) == 2
    assert "/login#" in (tmp_path / "log").read_text()


def _free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
