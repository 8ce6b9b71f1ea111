from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ninthsky.config import Settings
from ninthsky.config.load import parse_settings
from ninthsky.radio.stages import STAGES
from ninthsky.radio.why import explain
from ninthsky.run.engine import run_stage
from ninthsky.run.folder import RunFolder, read_json, write_json
from ninthsky.run.progress import PlainScreen


def settings(text: str = "") -> Settings:
    return parse_settings(f'name = "r"\nsize = "nano"\n[radio]\nstations = 60\nsteps = 12\n{text}', "run.toml")


def scratch(path: Path, given: Settings, checkpoint: bool = False) -> RunFolder:
    """A run folder whose pretraining is done: with a checkpoint of untrained weights, or with none."""
    folder = RunFolder(path)
    pretrain = folder.stage("train.pretrain")
    pretrain.mkdir(parents=True)
    if checkpoint:
        from ninthsky.model import Decoder, Shape
        from ninthsky.model.files import save

        save(Decoder(Shape.of(given.model, vocab=64), seed=1), pretrain / "export")
    write_json(pretrain / "manifest.json", {"digest": "none"})
    return folder


def run(folder: RunFolder, given: Settings, fresh: bool = True) -> dict[str, dict[str, Any]]:
    manifests = {}
    for stage in STAGES:
        run_stage(folder, given, stage, PlainScreen(), fresh=fresh)
        manifests[stage.name] = json.loads((folder.stage(stage.name) / "manifest.json").read_text())
    return manifests


def tables(folder: RunFolder, stage: str) -> dict[str, Any]:
    return {figure["id"]: figure for figure in json.loads((folder.stage(stage) / "figures.json").read_text())}


def test_without_a_checkpoint_the_fast_path_plans_alone_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = settings()
    folder = scratch(tmp_path / "run", given)
    manifests = run(folder, given)
    assert "fast path alone" in capsys.readouterr().out
    assert {"plan.csv", "plan/cells-00000.parquet", "plan/stations-00000.parquet", "backtest.json"} <= set(
        manifests["radio.plan"]["outputs"]
    )
    summary = read_json(folder.stage("radio.plan") / "summary.json")
    assert summary is not None
    (headline,) = summary["headlines"]
    assert headline["synthetic"] and "%" in headline["value"] and "%" in headline["rival_value"]
    station, hour = headline["command"].split()[-1].split("@")
    assert explain(folder.stage("radio.plan"), f"{station}@{hour}") is not None
    stations = read_json(folder.stage("radio.stations") / "summary.json")
    assert stations is not None and "synthetic" in stations["source"]
    every = {**tables(folder, "radio.forecast"), **tables(folder, "radio.plan")}
    assert {"radio-accuracy", "radio-coverage", "radio-plans", "radio-saving", "radio-frontier", "radio-band"} <= set(every)
    for name in ("radio-accuracy", "radio-plans", "radio-saving", "radio-frontier", "radio-band", "radio-coverage"):
        assert "ynthetic" in every[name]["title"] + every[name]["note"], f"{name} does not say that its stations are made up"


def test_the_same_settings_give_the_same_digests_and_another_seed_others(tmp_path: Path) -> None:
    given = settings()
    one, two = (run(scratch(tmp_path / name, given), given) for name in ("one", "two"))
    assert {name: manifest["digest"] for name, manifest in one.items()} == {name: m["digest"] for name, m in two.items()}
    other = parse_settings('name = "r"\nsize = "nano"\nseed = 8\n[radio]\nstations = 60\nsteps = 12', "run.toml")
    assert run(scratch(tmp_path / "other", other), other)["radio.plan"]["digest"] != one["radio.plan"]["digest"]


def test_a_persons_counters_are_not_called_synthetic(tmp_path: Path) -> None:
    import polars as pl

    from tests.radio.rows import rows_of

    path = tmp_path / "counters.csv"
    table = pl.DataFrame(rows_of(days=21), schema=["ts", "station", "cell", "load"], orient="row")
    table.write_csv(path, datetime_format="%Y-%m-%d %H:%M")
    given = settings(f'counters = "{path}"')
    folder = scratch(tmp_path / "run", given)
    run(folder, given)
    summary = read_json(folder.stage("radio.plan") / "summary.json")
    assert summary is not None and not summary["headlines"][0]["synthetic"]
    assert "ynthetic" not in (folder.stage("radio.plan") / "figures.json").read_text()
    assert "radio-findings" in tables(folder, "radio.stations")


@pytest.mark.slow
def test_the_checkpoint_forecasts_beside_the_fast_path(tmp_path: Path) -> None:
    given = settings()
    folder = scratch(tmp_path / "run", given, checkpoint=True)
    first = run(folder, given)
    rows = tables(folder, "radio.forecast")["radio-accuracy"]["rows"]
    assert {"chosen per group", "fast path", "transformer", "both, averaged", "hour-of-day mean"} <= {row[1] for row in rows}
    assert "radio-choice" in tables(folder, "radio.forecast")
    again = run(scratch(tmp_path / "again", given, checkpoint=True), given)
    assert again["radio.forecast"]["digest"] == first["radio.forecast"]["digest"]
    assert not (folder.stage("radio.forecast") / "work").exists()
