from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ninthsky.config.load import parse_settings
from ninthsky.errors import UserError
from ninthsky.evidence import read
from ninthsky.model.files import save
from ninthsky.run.engine import run_stage
from ninthsky.run.folder import RunFolder
from ninthsky.run.progress import PlainScreen
from ninthsky.serve.engine import Engine
from ninthsky.serve.proof import TOLERANCE, compare, held_out, serving
from ninthsky.serve.stages import STAGES


def upstream(folder: Path, export: Path) -> RunFolder:
    """A run folder with what the stage needs: an export and held-out tokens."""
    run = RunFolder(folder)
    shutil.copytree(export, run.stage("align.dpo") / "export")
    tokens = run.stage("data.tokens") / "tokens"
    tokens.mkdir(parents=True)
    np.random.default_rng(0).integers(6, 300, 400).astype(np.uint16).tofile(tokens / "held_out.bin")
    index = {"dtype": "uint16", "splits": {"held_out": {"file": "held_out.bin", "tokens": 400}}}
    (tokens / "index.json").write_text(json.dumps(index))
    return run


def prove(run: RunFolder) -> dict[str, Any]:
    settings = parse_settings('size = "nano"\n[serve]\nprompt = "the fox"\nmax_tokens = 8', "test")
    run_stage(run, settings, STAGES[0], PlainScreen(), fresh=True)
    proof: dict[str, Any] = json.loads((run.stage("serve.proof") / "proof.json").read_text())
    return proof


@pytest.mark.slow
def test_the_proof_holds_and_is_the_same_twice(export: Path, tmp_path: Path) -> None:
    run = upstream(tmp_path / "run", export)
    first = prove(run)
    assert (
        first["http_equals_model"]
        and first["logit_difference"] <= TOLERANCE * first["largest_logit"]
        and first["positions"] == 256
    )
    assert first["transformers_gives_same_answer"]
    digest = json.loads((run.stage("serve.proof") / "manifest.json").read_text())["digest"]
    assert prove(run) == first
    assert json.loads((run.stage("serve.proof") / "manifest.json").read_text())["digest"] == digest
    (record,) = read(run.stage("serve.proof") / "evidence.jsonl")
    assert record.id == "answer-served" and "largest logit difference" in record.render()


@pytest.mark.slow
def test_missing_transformers_is_told_as_a_limit(export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else find(name))
    run = upstream(tmp_path / "run", export)
    proof = prove(run)
    assert proof["http_equals_model"] and proof["logit_difference"] is None
    summary = json.loads((run.stage("serve.proof") / "summary.json").read_text())
    assert any("not compared with `transformers`" in limit for limit in summary["limits"])


@pytest.mark.slow
def test_one_altered_weight_is_seen(export: Path, tmp_path: Path) -> None:
    """The comparison can fail: the same folder with one weight changed gives other logits."""
    engine = Engine(export)
    altered = tmp_path / "export"
    with torch.no_grad():
        other = Engine(export)
        other.model.head.weight[7] += 0.01
    save(other.model, altered, export / "tokenizer.json")
    tokens = held_out(upstream(tmp_path / "run", export).stage("data.tokens") / "tokens")
    assert compare(engine, export, tokens, [2, 9, 3], 4).equal
    assert not compare(engine, altered, tokens, [2, 9, 3], 4).equal


def test_held_out_text_may_be_short(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(
        json.dumps({"dtype": "uint16", "splits": {"held_out": {"file": "h.bin", "tokens": 10}}})
    )
    np.arange(10, dtype=np.uint16).tofile(tmp_path / "h.bin")
    assert held_out(tmp_path).tolist() == [list(range(10))]


def test_a_server_that_does_not_start_is_told_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught, serving(tmp_path, tmp_path / "server.log"):
        pass
    assert caught.value.code == "N9-SRV-004" and "ended with status" in caught.value.what
