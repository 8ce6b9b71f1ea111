from __future__ import annotations

import json
from pathlib import Path

import pytest

from ninthsky.errors import UserError
from ninthsky.model.files import load, save
from ninthsky.train.cli import app
from ninthsky.train.state import checkpoint
from ninthsky.train.step.loop import Recipe, Trainer, fit
from ninthsky.train.step.loss import next_token_loss
from tests.train.small import cursor, model, write_token_folder


def call(*words: str) -> int:
    return app(list(words), exit_on_error=False, result_action="return_value")


def test_eval_shows_the_model_beside_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_token_folder(tmp_path / "tokens")
    made = model()
    fit(made, cursor().read, next_token_loss, Recipe(), 30)
    save(made, tmp_path / "export")
    assert call("eval", str(tmp_path / "export"), "--tokens", str(tmp_path / "tokens"), "--sequence", "16", "--json") == 0
    scores = {row["name"]: row for row in json.loads(capsys.readouterr().out)["scores"]}
    assert scores.keys() == {"model", "kneser-ney 5-gram", "bigram", "unigram"}
    assert len({row["tokens"] for row in scores.values()}) == 1
    assert all(row["bits_per_byte"] > 0 for row in scores.values())
    call("eval", str(tmp_path / "export"), "--tokens", str(tmp_path / "tokens"), "--sequence", "16")
    assert f"{scores['model']['nats_per_token']:.4f}" in capsys.readouterr().out
    with pytest.raises(UserError, match="N9-MOD-001"):
        call("eval", str(tmp_path), "--tokens", str(tmp_path / "tokens"))


def test_check_and_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("check", str(tmp_path), "--json") == 1
    trainer = Trainer(model(4), next_token_loss, Recipe(), 10)
    for step in (3, 4):
        trainer.step = step
        checkpoint.save(trainer, tmp_path)
    (tmp_path / "step-4" / ".metadata").unlink()
    capsys.readouterr()
    assert call("check", str(tmp_path), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["newest_good"] == "step-3" and "missing" in told["checkpoints"]["step-4"]
    save(model(0), tmp_path / "like")
    assert call("export", str(tmp_path / "step-3"), str(tmp_path / "out"), "--like", str(tmp_path / "like")) == 0
    assert load(tmp_path / "out").state_dict().keys() == model().state_dict().keys()
    assert (load(tmp_path / "out").head.weight == model(4).head.weight).all()
    with pytest.raises(UserError, match="N9-TRN-003"):
        call("export", str(tmp_path / "step-4"), str(tmp_path / "out"), "--like", str(tmp_path / "like"))
