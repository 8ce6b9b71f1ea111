from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ninthsky.data.made import made_pages
from ninthsky.run.folder import RunFolder
from tests.data.conftest import ARTICLES, page_of

N9 = Path(sys.executable).parent / "n9"


def n9(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([N9, "data", *arguments], capture_output=True, text=True, check=False)


def lines(result: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_extract_prints_a_line_per_page_in_order(tmp_path: Path) -> None:
    names = ["zh-dukou", "en-bees", "zh-shell-1"]
    made = {page.name: page for page in made_pages()}
    for name in names:
        (tmp_path / f"{name}.html").write_bytes(made[name].html)
    (tmp_path / "deep.html").write_text("<div>" * 100_000 + "x")
    table = pa.table({"id": ["p1", "p2", "p3"], "html": [page_of(*ARTICLES["en-kelp"].splitlines()).encode(), b"", None]})
    pq.write_table(table, tmp_path / "pages.parquet")
    files = [*(tmp_path / f"{name}.html" for name in names), tmp_path / "deep.html", tmp_path / "pages.parquet"]
    records = lines(n9("extract", *files, "--json"))
    assert [record["id"] for record in records] == [
        "zh-dukou.html",
        "en-bees.html",
        "zh-shell-1.html",
        "deep.html",
        "p1",
        "p2",
        "p3",
    ]
    first, _, shell, deep, kelp, empty, null = records
    assert first["language"] == "zh" and first["decision"] == "kept" and first["reason"] is None
    assert (
        "何水生说" in first["text"] and "咨询" not in first["text"] and first["spans"] and first["figures"]["min_words"] > 100
    )
    assert shell["decision"] == "dropped" and shell["reason"]["rule"] == "no_article"
    assert deep["decision"] == "dropped" and kelp["decision"] == "kept" and kelp["language"] == "en"
    assert empty["reason"]["rule"] == null["reason"]["rule"] == "empty"


def test_extract_as_text_and_other_languages(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(page_of(*ARTICLES["en-kelp"].splitlines()))
    result = n9("extract", tmp_path, "--languages", "zh")
    assert result.returncode == 0 and "wanted_languages" in result.stdout and "0 of 1 pages kept" in result.stderr


@pytest.mark.parametrize("arguments", [["extract"], ["extract", "no-such-file.html"], ["look", "no-such-file.html"]])
def test_mistakes_are_told_without_a_traceback(arguments: list[str]) -> None:
    result = n9(*arguments)
    assert result.returncode == 1 and "N9-DATA-001" in result.stderr and "Traceback" not in result.stderr


def test_a_file_that_is_no_parquet(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no")
    result = n9("extract", tmp_path / "x.parquet", "--json")
    assert result.returncode == 1 and "not a Parquet file" in result.stderr and "Traceback" not in result.stderr


def test_look_and_card(corpus: RunFolder) -> None:
    dropped = pq.read_table(corpus.stage("data.corpus") / "documents" / "00000.parquet", columns=["id", "path"]).to_pylist()[0]
    result = n9("look", dropped["id"], "--run", corpus.path)
    assert (
        result.returncode == 0 and "┃" in result.stdout and "Menu entry" in result.stdout and dropped["path"] in result.stdout
    )
    view = lines(n9("look", dropped["id"], "--run", corpus.path, "--json"))[0]
    assert {block["kept"] for block in view["blocks"]} == {True, False} and view["decision"] == "kept"
    assert n9("look", "doc-0", "--run", corpus.path).returncode == 1
    card = lines(n9("card", corpus.path, "--json"))[0]
    assert card["funnel"]["pages"] > 30 and card["tokens"]["vocab"] == 512
    assert {"rule": "min_words", "bound": "min"}.items() <= card["rules"][0].items() and card["rules"][0]["english"] == 40
    assert card["synthetic_tokens"] == {"train": 0, "held_out": 0} and "noindex" not in card["funnel"]["robots"]
    text = n9("card", corpus.path).stdout
    assert "near duplicate" in text and "bytes per token" in text


def test_look_at_a_file_of_each_kind(tmp_path: Path) -> None:
    path = tmp_path / "x.html"
    for data in (b"", b"<p></p>", next(iter(made_pages())).html):
        path.write_bytes(data)
        view = lines(n9("look", path, "--json"))[0]
        assert view["decision"] and isinstance(view["blocks"], list)
