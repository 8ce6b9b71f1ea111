"""What the reduce finds becomes what happens to rows: without a run, on parts as the map writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ninthsky.config.schema import Data
from ninthsky.data.corpus import DOCUMENTS, DROPPED
from ninthsky.data.decide import Decisions, decontaminate, narrowed
from ninthsky.data.decontaminate import Evaluation
from ninthsky.data.duplicates.find import find
from ninthsky.data.duplicates.runs import Shards
from ninthsky.data.duplicates.shard import leave, rank
from ninthsky.data.extract import Document, Extractor
from ninthsky.data.look import as_decided
from ninthsky.data.made import made_pages
from ninthsky.data.why import explain, find_row

ARTICLES = [page.article for page in made_pages() if page.article and page.name.startswith("en")]
NOTICE = "All that is written here belongs to the paper and may not be printed elsewhere without its leave"
Row = dict[str, Any]


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    return Extractor(Data())


def rows_of(texts: list[str], extractor: Extractor) -> list[Row]:
    documents = [Document(text=text, language="en", figures={"language_share": 1.0}) for text in texts]
    extractor.judge(documents)
    assert all(document.drop is None for document in documents)
    return [
        {
            "id": f"doc-{number:016x}", "source": "crawl", "path": f"https://paper.example/{number}", "language": "en",
            "text": document.text, "spans": [{"first": 4, "last": 5 + document.text.count("\n")}],
            "figures": list(document.figures.items()), "encoding": "utf-8", "made": False, "licence": "", "robots": "",
            "stage": None, "rule": None, "figure": None, "threshold": None, "detail": None, "cut": [],
        }
        for number, document in enumerate(documents)
    ]  # fmt: skip


def decided(rows: list[Row], extractor: Extractor, folder: Path, pages: int) -> list[Row]:
    """Two shards of the rows, decided together."""
    half = len(rows) // 2
    parts, folders = [], []
    for number, part in enumerate((rows[:half], rows[half:])):
        parts.append(folder / f"{number}.parquet")
        pq.write_table(
            pa.Table.from_pylist([{name: row[name] for name in ("id", "source", "path")} for row in part]), parts[-1]
        )
        folders.append(folder / f"sketches-{number}")
        ranks = [rank(1.0, dict(row["figures"])["min_words"]) for row in part]
        leave(folders[-1], range(len(part)), [row["text"] for row in part], ranks, ["paper.example"] * len(part))
    found = find(folders, folder / "reduce", 0.8, pages, 0.1)
    decisions = Decisions(parts, Shards(folders), found, 0.8, extractor)
    decisions.apply(0, rows[:half])
    decisions.apply(1, rows[half:])
    return rows


def test_duplicates_name_their_survivor(extractor: Extractor, tmp_path: Path) -> None:
    texts = [ARTICLES[0], ARTICLES[1], ARTICLES[0].replace(",", ";"), ARTICLES[1] + " So it goes."]
    rows = decided(rows_of(texts, extractor), extractor, tmp_path, 0)
    assert [row["stage"] for row in rows] == [None, "near duplicate", "exact duplicate", None]
    assert rows[2]["detail"] == "the same text as doc-0000000000000000 (crawl https://paper.example/0), which stays"
    assert "doc-0000000000000003" in rows[1]["detail"] and rows[1]["figure"] > 0.8 == rows[1]["threshold"]


def test_a_shell_is_taken_out_and_what_is_all_shell_goes(extractor: Extractor, tmp_path: Path) -> None:
    texts = [f"{article}\n{NOTICE}" for article in ARTICLES[:6]]
    lines = ARTICLES[7].split("\n")
    texts += [f"{NOTICE}\n{ARTICLES[7]}", "\n".join([*lines[: len(lines) // 2], NOTICE, ARTICLES[8]])]
    rows = decided(rows_of(texts, extractor), extractor, tmp_path, 3)
    assert [row["stage"] for row in rows] == [None] * 8
    for row in rows:
        assert NOTICE not in row["text"] and [block["text"] for block in row["cut"]] == [NOTICE]
        assert row["cut"][0]["why"] == "stands on 8 pages of paper.example; 3 are allowed"
        assert sum(span["last"] - span["first"] for span in row["spans"]) == row["text"].count("\n") + 1
        assert dict(row["figures"])["repeated_blocks"] > 0
    assert rows[6]["spans"] == [{"first": 5, "last": 5 + len(lines)}] and len(rows[7]["spans"]) == 2


def test_what_is_left_too_short_goes_with_that_reason(extractor: Extractor, tmp_path: Path) -> None:
    own = [
        f"{name} wrote this line by hand, of the {name} and of what they saw there." for name in ("Ann", "Bo", "Cy", "Di", "Ed")
    ]
    shell = [line for line in ARTICLES[2].split("\n") if len(line.split()) > 20][:3]
    # Shells of other order are no near duplicates of each other only because each page has a longer text of its own.
    texts = ["\n".join([*shell, line, article]) for line, article in zip(own, ARTICLES[3:8], strict=True)]
    short = "\n".join([*shell, own[0]])
    rows = decided(rows_of([*texts, short], extractor), extractor, tmp_path, 4)
    assert [row["stage"] for row in rows] == [None] * 5 + ["repeated blocks"]
    assert rows[5]["rule"] == "repeated_blocks" and "what is left breaks min_words" in rows[5]["detail"]
    assert rows[5]["figure"] > 0.5 and len(rows[5]["cut"]) == len(shell)


@pytest.mark.parametrize("action", ["drop", "cut"])
def test_what_an_evaluation_set_holds_goes(extractor: Extractor, action: Any, tmp_path: Path) -> None:
    lines = ARTICLES[3].split("\n")
    question = max(lines, key=len)
    rows = rows_of([ARTICLES[3], ARTICLES[4]], extractor)
    decontaminate(rows, Evaluation.of([("exam#7", question)], 13, 20), extractor, action)
    assert rows[1]["stage"] is None and rows[1]["cut"] == [] and "evaluation_overlap" not in dict(rows[1]["figures"])
    assert dict(rows[0]["figures"])["evaluation_overlap"] > 0
    if action == "drop":
        assert (rows[0]["stage"], rows[0]["rule"]) == ("evaluation sets", "n_gram_overlap")
        assert "with exam#7" in rows[0]["detail"] and question[:50] in rows[0]["detail"]
    else:
        assert rows[0]["stage"] is None and rows[0]["text"].split("\n") == [line for line in lines if line != question]
        assert rows[0]["cut"][0]["text"] == question and "with exam#7" in rows[0]["cut"][0]["why"]


def test_why_and_look_show_what_was_taken_out(extractor: Extractor, tmp_path: Path) -> None:
    rows = decided(rows_of([f"{article}\n{NOTICE}" for article in ARTICLES[:6]], extractor), extractor, tmp_path, 3)
    for folder, schema in (("documents", DOCUMENTS), ("dropped", DROPPED)):
        (tmp_path / folder).mkdir()
        chosen = rows if folder == "documents" else []
        pq.write_table(pa.Table.from_pylist(chosen, schema), tmp_path / folder / "00000.parquet")
    record = explain(tmp_path, rows[0]["id"])
    assert record is not None and any(NOTICE[:40] in str(fact.value) and "6 pages" in fact.source for fact in record.facts)
    row = find_row(tmp_path, rows[0]["id"])
    assert row is not None
    view: Row = {"blocks": [{"kept": True, "text": NOTICE}, {"kept": True, "text": "another"}], "decision": "kept"}
    assert [block["kept"] for block in as_decided(view, row, Data())["blocks"]] == [False, True]


def test_spans_without_lines() -> None:
    spans = [{"first": 2, "last": 5}, {"first": 9, "last": 10}]
    assert narrowed(spans, {1: ""}, 4) == [{"first": 2, "last": 3}, {"first": 4, "last": 5}, {"first": 9, "last": 10}]
    assert narrowed(spans, {3: ""}, 4) == [{"first": 2, "last": 5}] and narrowed(spans, {0: ""}, 7) == spans
