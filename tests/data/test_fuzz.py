"""A seeded handful of benchmarks.fuzz's ten thousand damaged inputs, and the two that once stopped a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import zstandard

from benchmarks.fuzz import make
from ninthsky.config.schema import Data
from ninthsky.data.blocks import decode, parse
from ninthsky.data.extract import Extractor
from ninthsky.data.formats import Raw, files_of, read_file
from ninthsky.data.made import made_pages


def test_every_damaged_input_is_told_of(tmp_path: Path) -> None:
    made = make(tmp_path, [page.html for page in made_pages()], 60, seed=11)
    extractor = Extractor(Data())
    for url, name in files_of(str(tmp_path)):
        raws = list(read_file(url, name))
        assert raws, (name, made[name])
        documents = [extractor(raw) for raw in raws]
        extractor.judge(documents)
        assert all(document.drop is not None or document.text for document in documents)
        made.pop(name)
    assert not made


def test_a_damaged_zst_file_is_a_damaged_document(tmp_path: Path) -> None:
    whole = zstandard.compress(b'{"text": "one"}\n' * 5000)
    path = tmp_path / "x.jsonl.zst"
    path.write_bytes(whole[:12] + bytes(8) + whole[20:])
    assert [raw for raw in read_file(str(path)) if "damaged" in raw.trouble]
    for cut in (3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert "damaged" in list(read_file(str(path)))[-1].trouble
    path.write_bytes(whole + zstandard.compress(b'{"id": "last", "text": "two"}\n'))  # frames may follow each other
    assert [raw.path for raw in read_file(str(path))][-1] == "last"


@pytest.mark.parametrize("declared", ["utf-7", "unicode_escape", "idna", "zlib", "utf-16"])
def test_encodings_that_no_browser_knows_are_not_believed(declared: str) -> None:
    text, name = decode(f"<meta charset={declared}><p>+2Lj- \\ud800 caf".encode() + b"\xe9 au lait, tr\xe8s bon</p>")
    assert name not in (declared, "utf_7") and parse(text).texts(0, 1)


def test_null_bytes_do_not_reach_the_text() -> None:
    document = Extractor(Data())(Raw("x", b"<p>One\0 two</p>" * 3))
    assert "\0" not in document.text
