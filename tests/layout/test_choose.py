from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ninthsky.config.load import parse_settings
from ninthsky.config.schema import Settings
from ninthsky.errors import UserError
from ninthsky.evidence import read
from ninthsky.layout.choose import judge, problem_of
from ninthsky.layout.search import meshes
from ninthsky.layout.stages import STAGES
from ninthsky.run.engine import run_stage
from ninthsky.run.folder import RunFolder
from ninthsky.run.progress import PlainScreen


def settings_of(text: str) -> Settings:
    return parse_settings(text, "test")


@pytest.mark.parametrize("size", ["nano", "tiny"])
def test_the_demo_is_cut_by_fsdp_and_experts(size: str) -> None:
    settings = settings_of(f'size = "{size}"')
    assert settings.data.vocab is not None
    problem = problem_of(settings, settings.data.vocab)
    verdicts = judge(problem, "egress")
    chosen = verdicts[0]
    assert chosen.cut.mesh() == {"pp": 1, "dp_replicate": 1, "dp_shard": 4, "ep": 2, "cp": 1, "tp": 1}
    assert len(verdicts) == len(meshes(problem)) and [v.status for v in verdicts].count("chosen") == 1
    runnable = [v for v in verdicts if v.status in ("chosen", "lost")]
    assert all(v.cut.pp == v.cut.cp == v.cut.tp == 1 for v in runnable)
    assert chosen.egress["total"] == min(v.egress["total"] for v in runnable)
    for verdict in verdicts[1:]:
        assert verdict.text and (verdict.status == "lost" or verdict.figure > verdict.threshold)


def test_what_was_chosen_is_a_mesh_that_the_trainer_takes() -> None:
    from ninthsky.model.shape import Shape
    from ninthsky.train.cut.mesh import Mesh

    for text in ('size = "nano"', 'size = "nano"\n[layout]\nhosts = 1\nranks_per_host = 8'):
        settings = settings_of(text)
        assert settings.data.vocab is not None and settings.model.experts is not None
        problem = problem_of(settings, settings.data.vocab)
        for verdict in judge(problem, "egress"):
            if verdict.status in ("chosen", "lost"):
                shape = Shape.of(settings.model, settings.data.vocab)
                Mesh.of(verdict.cut.mesh()).check(problem.cluster.ranks, shape, settings.train.sequence)


def test_units_are_the_trainers() -> None:
    from ninthsky.layout.shape import Work
    from ninthsky.train.cut.parallel import UNIT_BYTES

    assert Work(1, 1).unit_bytes == UNIT_BYTES


def test_nothing_that_fits_is_told_with_counts() -> None:
    settings = settings_of('size = "nano"')
    problem = problem_of(settings, 512)
    cramped = replace(problem, cluster=replace(problem.cluster, memory_gb=1e-4))
    with pytest.raises(UserError) as caught:
        judge(cramped, "egress")
    assert caught.value.code == "N9-LAY-003" and "does not fit" in caught.value.what and caught.value.next


def test_an_unknown_card_is_told_with_the_known_ones() -> None:
    with pytest.raises(UserError) as caught:
        problem_of(settings_of('size = "nano"\n[layout]\nchip = "h1000"'), 512)
    assert caught.value.code == "N9-LAY-001" and "h100" in caught.value.next


def run_layout(folder: Path, text: str) -> dict[str, Any]:
    run = RunFolder(folder)
    run.path.mkdir(parents=True)
    run_stage(run, settings_of(text), STAGES[0], PlainScreen(), fresh=True)
    manifest: dict[str, Any] = json.loads((run.stage("layout") / "manifest.json").read_text())
    return manifest


def test_the_stage_writes_a_mesh_and_answers_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run_layout(tmp_path / "one", 'size = "nano"')
    second = run_layout(tmp_path / "two", 'size = "nano"')
    assert first["digest"] == second["digest"]
    out = tmp_path / "one" / "stages" / "layout"
    block = json.loads((out / "mesh.json").read_text())
    assert parse_settings("[mesh]\n" + "\n".join(f"{k} = {v}" for k, v in block.items()), "mesh").mesh is not None
    records = {record.id: record for record in read(out / "evidence.jsonl")}
    candidates = json.loads((out / "candidates.json").read_text())
    assert len(records) == candidates["candidates"]
    assert records["layout-dp_shard4.ep2"].verdict.startswith("chosen")
    lost = records["layout-dp_shard4"].render()
    assert "more bytes between hosts" in lost and "threshold" in lost and "memory per rank" in lost
    assert records["layout-pp2.dp_shard2"].verdict == "only by name: a pipeline wants [train] micro_batches: name it in [mesh]"
    said = capsys.readouterr().out
    assert "chosen dp_shard4.ep2" in said and "dp_shard=4" in said


def test_another_cluster_is_another_result(tmp_path: Path) -> None:
    first = run_layout(tmp_path / "one", 'size = "nano"')
    second = run_layout(tmp_path / "two", 'size = "nano"\n[layout]\nranks_per_host = 1')
    assert first["digest"] != second["digest"]
