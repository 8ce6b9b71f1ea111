from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ninthsky.data.corpus import DOCUMENTS, DROPPED
from ninthsky.data.diff import diff, diff_lines, diff_page
from ninthsky.errors import UserError
from ninthsky.run.folder import RunFolder, write_json


def run_of(path: Path, kept: dict[str, str], dropped: dict[str, tuple[str, str, float, float]], **settings: Any) -> RunFolder:
    """A run folder as the data stages leave it."""
    run = RunFolder(path)
    stage = run.stage("data.corpus")
    for folder in ("documents", "dropped"):
        (stage / folder).mkdir(parents=True)
    where = {"source": "s", "language": "en", "figures": [("min_words", 55.0)], "made": False}
    rows: list[dict[str, Any]] = [{"id": id, "path": f"{id}.html", "text": text, **where} for id, text in kept.items()]
    pq.write_table(pa.Table.from_pylist(rows, DOCUMENTS), stage / "documents" / "00000.parquet")
    rows = [
        {
            "id": id,
            "path": f"{id}.html",
            "stage": step,
            "rule": rule,
            "figure": figure,
            "threshold": bound,
            "detail": "d",
            **where,
        }
        for id, (step, rule, figure, bound) in dropped.items()
    ]
    pq.write_table(pa.Table.from_pylist(rows, DROPPED), stage / "dropped" / "00000.parquet")
    by_rule: dict[str, dict[str, int]] = {}
    for step, rule, *_ in dropped.values():
        by_rule.setdefault(step, {})[rule] = by_rule.get(step, {}).get(rule, 0) + 1
    funnel = {
        "pages": len(kept) + len(dropped), "documents": len(kept), "words": 10 * len(kept), "languages": {"en": len(kept)},
        "steps": [{"step": step, "by_rule": rules} for step, rules in by_rule.items()],
    }  # fmt: skip
    write_json(stage / "funnel.json", funnel)
    write_json(stage / "started.json", {"settings": {"data.quality": settings}})
    return run


SHORT = ("quality", "min_words", 55.0, 60.0)


@pytest.fixture
def runs(tmp_path: Path) -> tuple[RunFolder, RunFolder]:
    a = run_of(
        tmp_path / "a",
        {"p1": "one\ntwo", "p2": "same", "p3": "x"},
        {"p4": ("reading", "empty", 0, 1), "p5": SHORT},
        min_words=40,
    )
    b = run_of(tmp_path / "b", {"p1": "one\nthree", "p2": "same", "p5": "y"}, {"p3": SHORT, "p6": SHORT}, min_words=60)
    return a, b


def test_what_changed(runs: tuple[RunFolder, RunFolder]) -> None:
    found = diff(*runs)
    assert found["settings"] == {"data.quality.min_words": [40, 60]}
    assert found["counts"]["documents"] == [3, 3] and found["counts"]["pages"] == [5, 5]
    assert found["reasons"] == {"quality: min_words": [1, 2], "reading: empty": [1, 0]}
    moves = {(move["a"], move["b"]): move for move in found["moves"]}
    assert {key: move["pages"] for key, move in moves.items()} == {
        ("kept", "quality: min_words"): 1,
        ("quality: min_words", "kept"): 1,
    }
    example = moves["kept", "quality: min_words"]["examples"][0]
    assert example["id"] == "p3" and example["b"]["figure"] == 55.0 and example["b"]["threshold"] == 60.0
    assert example["a"] == {
        "id": "p3",
        "source": "s",
        "path": "p3.html",
        "language": "en",
        "characters": 1,
        "rival_figure": 55.0,
    }
    assert found["texts_changed"]["documents"] == 1 and found["texts_changed"]["examples"][0]["lines"] == ["-two", "+three"]
    assert [found["only"][side]["pages"] for side in "ab"] == [1, 1] and found["only"]["a"]["examples"][0]["id"] == "p4"


def test_text_and_page(runs: tuple[RunFolder, RunFolder], tmp_path: Path) -> None:
    found = diff(*runs)
    text = "\n".join(diff_lines(found))
    assert "data.quality.min_words: 40 -> 60" in text and "kept, 1 characters; that rule's figure here: 55" in text
    assert "dropped, min_words 55 against 60" in text and "+three" in text and "1 pages are in b only" in text
    diff_page(found, tmp_path / "diff.html")
    page = (tmp_path / "diff.html").read_text("utf-8")
    assert "What changed between two corpora" in page and "p3.html" in page and "do it again" not in page


def test_nothing_and_mistakes(runs: tuple[RunFolder, RunFolder], tmp_path: Path) -> None:
    same = run_of(
        tmp_path / "c",
        {"p1": "one\ntwo", "p2": "same", "p3": "x"},
        {"p4": ("reading", "empty", 0, 1), "p5": SHORT},
        min_words=40,
    )
    assert diff_lines(diff(runs[0], same))[-1] == "  nothing differs"
    with pytest.raises(UserError, match="N9-DATA-005"):
        diff(runs[0], runs[0])
    with pytest.raises(UserError, match="N9-DATA-003"):
        diff(runs[0], RunFolder(tmp_path / "none"))
