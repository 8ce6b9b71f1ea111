from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ninthsky.data.decontaminate import Evaluation, read_sets
from ninthsky.data.made import made_pages
from ninthsky.errors import UserError

QUESTION = "What is the capital city of the old kingdom that lay beyond the two great rivers of the north?"
CHINESE = "下列关于渡口清晨的描述中正确的一项是哪一个请说明理由并举例"
SHORT = "Eight words make the shortest item there is."
SETS = [("exam#1", QUESTION), ("exam#2", CHINESE), ("exam#3", SHORT), ("exam#4", "Too short to count")]


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    path = tmp_path_factory.mktemp("sets") / "evaluation.npz"
    Evaluation.of(SETS, words=13, characters=20).save(path)
    return Evaluation.load(path)


@pytest.mark.parametrize(
    ("text", "language", "shared", "item"),
    [
        (f"He asked: “{QUESTION.upper()}” Nobody knew.", "en", QUESTION.upper()[:-1], "exam#1"),
        ("They said: the capital city of the old kingdom that lay beyond the two, and so on", "en",
         "the capital city of the old kingdom that lay beyond the two", None),
        ("the capital, city of the old kingdom -- that lay beyond the two GREAT rivers", "en",
         "the capital, city of the old kingdom -- that lay beyond the two GREAT rivers", "exam#1"),
        ("老师问：下列关于渡口清晨的描述中，正确的一项是哪一个？请说明理由。没人回答。", "zh",
         "下列关于渡口清晨的描述中，正确的一项是哪一个？请说明理由", "exam#2"),
        ("下列关于渡口清晨的描述中正确的一项", "zh", "", None),
        ("Then eight words make the shortest item there is, they said", "en",
         "eight words make the shortest item there is", "exam#3"),
        ("It is too short to count, they said", "en", "", None),
        ("", "en", "", None),
    ],
)  # fmt: skip
def test_what_is_shared_and_where(evaluation: Evaluation, text: str, language: str, shared: str, item: str | None) -> None:
    found = evaluation.overlap(text, language)
    if item is None:
        assert found is None
        return
    assert found is not None and found.item == item
    assert [text[first:last] for first, last in found.spans] == [shared] and 0 < found.share <= 1


def test_articles_share_nothing_with_the_sets(evaluation: Evaluation) -> None:
    assert not any(evaluation.overlap(page.article, page.name[:2]) for page in made_pages() if page.article)


def test_two_spans_and_the_share(evaluation: Evaluation) -> None:
    found = evaluation.overlap(f"{SHORT}\nAnd then another line of its own follows here.\n{QUESTION}", "en")
    assert found is not None and len(found.spans) == 2 and found.share == pytest.approx(27 / 36)


def test_sets_of_every_form(tmp_path: Path) -> None:
    row = {"question": QUESTION, "choices": ["one", {"text": "two"}], "answer": 1}
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write(json.dumps(row) + "\n\n")
    (tmp_path / "b.txt").write_text(f"{SHORT}\n\n{QUESTION}\n", "utf-8")
    pq.write_table(pa.table({"question": [CHINESE], "number": [3]}), tmp_path / "c.parquet")
    assert read_sets([str(tmp_path)]) == [
        ("a.jsonl.gz#1", f"{QUESTION}\none\ntwo"), ("b.txt#1", f"{SHORT}\n"), ("b.txt#3", f"{QUESTION}\n"),
        ("c.parquet#1", CHINESE),
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "code"), [("x.txt", "\n", "N9-DATA-006"), ("x.jsonl", "{", "N9-DATA-001")])
def test_bad_sets_are_told(tmp_path: Path, name: str, text: str, code: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as caught:
        read_sets([str(tmp_path / name)])
    assert caught.value.code == code
    with pytest.raises(UserError):
        read_sets([str(tmp_path / "absent.jsonl")])
