from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ninthsky.errors import UserError
from ninthsky.layout.cli import app


def call(capsys: pytest.CaptureFixture[str], *tokens: str) -> str:
    assert app(tokens, result_action="return_value", exit_on_error=False) == 0
    return capsys.readouterr().out


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_the_demos_own_cluster_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    text = call(capsys)
    assert "dp_shard4.ep2" in text and "chosen" in text and "more bytes between hosts than the chosen cut" in text
    assert text.rstrip().endswith("[mesh]\npp = 1\ndp_replicate = 1\ndp_shard = 4\nep = 2\ncp = 1\ntp = 1")


def test_a_large_cluster_is_ranked_by_time(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (
        "--size",
        "cluster",
        "--hosts",
        "2304",
        "--ranks-per-host",
        "8",
        "--chip",
        "ascend-910b",
        "--batch",
        "18432",
        "--top",
        "3",
    )
    text = call(capsys, *arguments)
    assert "uncertain" in text and "MFU" in text and "18,432 cards" in text and "[mesh]" in text
    rows = lines(call(capsys, *arguments, "--json"))
    cuts = [row for row in rows if row["kind"] == "cut"]
    assert len(cuts) == 3 and cuts[0]["seconds"]["total"] <= cuts[1]["seconds"]["total"]
    assert cuts[0]["memory"]["total"] < 64e9
    assert rows[-1]["kind"] == "layout" and rows[-1]["mesh"] == {axis: cuts[0][axis] for axis in rows[-1]["mesh"]}


def test_a_file_and_a_models_config(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file, config = tmp_path / "run.toml", tmp_path / "config.json"
    file.write_text('size = "nano"\n[layout]\nhosts = 1\nranks_per_host = 4\n')
    assert "1 hosts x 4 cpu" in call(capsys, str(file))
    config.write_text(
        '{"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100, "intermediate_size": 128}'
    )
    assert "chosen" in call(capsys, "--model", str(config))


def test_json_verdicts(capsys: pytest.CaptureFixture[str]) -> None:
    rows = lines(call(capsys, "--size", "nano", "--json"))
    assert rows[0]["status"] == "chosen" and rows[0]["id"] == "layout-dp_shard4.ep2"
    assert rows[-1]["mesh"]["ep"] == 2


@pytest.mark.parametrize(
    ("tokens", "code"),
    [
        (("--chip", "abacus"), "N9-LAY-001"),
        (("--model", "/nowhere/config.json"), "N9-LAY-002"),
        (("--size", "cluster"), "N9-LAY-003"),
        (("--size", "cluster", "--no-trainer", "--hosts", "1"), "N9-LAY-003"),
        (("--hosts", "0"), "N9-CFG-012"),
        (("/nowhere/run.toml",), "N9-CFG-001"),
        (("run.toml", "--size", "nano"), "N9-CFG-013"),
    ],
)
def test_mistakes_are_told(tokens: tuple[str, ...], code: str) -> None:
    with pytest.raises(UserError) as caught:
        app(tokens, result_action="return_value", exit_on_error=False)
    assert caught.value.code == code and str(caught.value).startswith(f"error[{code}]")


def test_cards_and_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert "910b" in call(capsys, "--chips")
    chips = lines(call(capsys, "--chips", "--json"))
    assert all(chip["source"] and chip["certainty"] for chip in chips)
    measured = lines(call(capsys, "--measure", "--json"))[0]
    assert measured["gflops"] > 0 and measured["copy_gbs"] > 0
