from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from ninthsky.guard.faults import Timeline
from ninthsky.guard.out.metrics import metrics_text
from ninthsky.guard.page.acts import Acts
from ninthsky.guard.page.folder import JobFolder
from ninthsky.guard.picture import Card
from tests.conftest import ROOT
from tests.guard.page.job_files import JobFiles

DEPLOY = ROOT / "deploy"


def exported(files: JobFiles, acts: Acts | None = None) -> dict[tuple[str, ...], float]:
    """Sample name and labels but the job's -> value."""
    job = JobFolder(files.folder)
    job.look()
    text = metrics_text(job, acts or Acts(files.folder)).decode()
    return {
        (sample.name, *(value for key, value in sorted(sample.labels.items()) if key != "job")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def files(tmp_path: Path) -> JobFiles:
    files = JobFiles(tmp_path)
    files.fault(1, state="repaired", steps_redone=2, timeline=Timeline(began=100.0, named=102.0, trained=103.0))
    files.fault(2, cause="exit", injected=True, timeline=Timeline(began=files.began + 50, named=files.began + 50.05))
    files.event("refused", host="controller", counts={"wrong key": 3})
    files.event("refused", host="controller", counts={"wrong key": 5, "oversized": 1})
    files.cards[0] = Card.ACCUSED
    files.draw()
    return files


def test_what_happened_is_counted(files: JobFiles) -> None:
    acts = Acts(files.folder)
    job = JobFolder(files.folder)
    job.look()
    acts.record("Ada", "here", "not a fault", job.faults["F-0001"])
    values = exported(files, acts)
    assert values["ninthsky_faults_total", "slow", "false"] == 1 and values["ninthsky_faults_total", "exit", "true"] == 1
    assert values["ninthsky_open_faults", "open"] == 1
    assert values["ninthsky_time_to_name_seconds_bucket", "0.1"] == 1
    assert values["ninthsky_time_to_name_seconds_bucket", "+Inf"] == 2
    assert values["ninthsky_time_to_name_seconds_sum",] == pytest.approx(2.05)
    assert values["ninthsky_time_to_training_seconds_count",] == 1
    assert (
        values["ninthsky_refused_messages_total", "wrong key"] == 5
        and values["ninthsky_refused_messages_total", "oversized"] == 1
    )
    assert values["ninthsky_cards", "at_work"] == 5 and values["ninthsky_cards", "accused"] == 1
    assert (
        values["ninthsky_step",] == 12 and values["ninthsky_false_alarms",] == 1 and values["ninthsky_steps_redone_total",] == 2
    )
    assert values["ninthsky_job_stage", "run"] == 1 and values["ninthsky_job_stage", "form"] == 0
    assert 0 < values["ninthsky_goodput_ratio",] < 1 and values["ninthsky_step_seconds",] == 0.5


def test_a_job_without_a_picture_is_no_error(tmp_path: Path) -> None:
    files = JobFiles(tmp_path)
    (tmp_path / "fleet.bin").unlink()
    values = exported(files)
    assert ("ninthsky_step",) not in values and values["ninthsky_job_stage", "run"] == 0


def strings(tree: Any, key: str) -> list[str]:
    if isinstance(tree, dict):
        here = [tree[key]] if isinstance(tree.get(key), str) else []
        return here + [text for value in tree.values() for text in strings(value, key)]
    return [text for value in tree for text in strings(value, key)] if isinstance(tree, list) else []


@pytest.mark.parametrize("name", ["grafana.json", "alerts.yaml"])
def test_everything_that_dashboard_and_rules_name_is_exported(files: JobFiles, name: str) -> None:
    text = (DEPLOY / name).read_text()
    expressions = strings(json.loads(text) if name.endswith("json") else yaml.safe_load(text), "expr")
    names = {found for expression in expressions for found in re.findall(r"\bninthsky_\w+", expression)}
    assert len(expressions) > 5 and names
    assert names <= {key[0] for key in exported(files)}
    labels = {found for expression in expressions for found in re.findall(r'\{[^}]*?(\w+)=~?"', expression)}
    assert labels <= {"job", "cause", "injected", "state", "stage", "reason"}
