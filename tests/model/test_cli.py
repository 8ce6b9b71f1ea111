from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ninthsky.config.load import parse_settings
from ninthsky.config.presets import PRESETS
from ninthsky.errors import UserError
from ninthsky.model import Decoder, Shape
from ninthsky.model.cli import app
from ninthsky.model.files import load, save

SHAPE = Shape(97, 2, 32, 4, 2, 5, 2, 24, dense_layers=0, expert_dims=(24, 24, 8, 8, 8), rotary=0.5, qk_norm=False)


def call(*words: str) -> int:
    return app(list(words), exit_on_error=False, result_action="return_value")


def test_presets_are_shown_with_their_counts_and_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("presets", "--json") == 0
    rows = json.loads(capsys.readouterr().out)["presets"]
    assert [row["preset"] for row in rows] == list(PRESETS)
    assert {row["preset"]: round(row["parameters"] / 1e9, 1) for row in rows}["qwen3-30b-a3b"] == 30.5
    assert call("presets") == 0
    shown = capsys.readouterr().out
    assert all(name in shown and preset.source in shown for name, preset in PRESETS.items())


def test_a_folder_s_shape_can_be_pasted_into_run_toml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(Decoder(SHAPE), tmp_path)
    (tmp_path / "model.safetensors").unlink()  # config.json is enough
    assert call("show", str(tmp_path)) == 0
    text = capsys.readouterr().out
    assert f"{SHAPE.parameters():,} parameters" in text
    assert Shape.of(parse_settings(text, "run.toml").model, 97) == SHAPE
    assert call("show", str(tmp_path), "--json") == 0
    assert json.loads(capsys.readouterr().out)["active_parameters"] == SHAPE.active_parameters()
    with pytest.raises(UserError, match=r"no config\.json"):
        call("show", str(tmp_path / "nowhere"))


def test_a_folder_is_imported_with_its_tokenizer_and_token_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, theirs = Decoder(SHAPE, seed=3), tmp_path / "theirs"
    save(made, theirs)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (theirs / name).write_text('{"eos_token_id": [7, 9]}')
    config = json.loads((theirs / "config.json").read_text())
    (theirs / "config.json").write_text(json.dumps({**config, "eos_token_id": [7, 9]}))
    assert call("import", str(theirs), str(tmp_path / "ours")) == 0
    assert str(tmp_path / "ours") in capsys.readouterr().out
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json"):
        assert json.loads((tmp_path / "ours" / name).read_text())["eos_token_id"] == [7, 9]
    read = load(tmp_path / "ours").state_dict()
    assert all(torch.equal(read[name], tensor) for name, tensor in made.state_dict().items())
    assert call("import", str(theirs), str(tmp_path / "small"), "--dtype", "bf16", "--shard-gb", "0.00002", "--json") == 0
    assert len(list((tmp_path / "small").glob("*.safetensors"))) > 2
    read = load(tmp_path / "small").state_dict()
    assert all(torch.equal(read[name], tensor.bfloat16().float()) for name, tensor in made.state_dict().items())
    with pytest.raises(UserError, match="over itself"):
        call("import", str(theirs), str(theirs))
