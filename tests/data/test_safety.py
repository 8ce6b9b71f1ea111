from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ninthsky.config.schema import Data, Safety
from ninthsky.data.extract import Document, Extractor, documents_of
from ninthsky.data.formats import Raw
from ninthsky.data.safety import Hooks
from ninthsky.errors import UserError
from tests.data.conftest import ARTICLES, page_of


def test_addresses_by_host_domain_and_folder(tmp_path: Path) -> None:
    listed = tmp_path / "blocked.txt"
    listed.write_text("# ours\nads.example.org\nhttps://News.example.net/spam/  # a folder\n赌场.example\n", "utf-8")
    hooks = Hooks(Safety(block_lists=(str(listed),)))
    for blocked in (
        "https://ads.example.org/",
        "http://a.b.ADS.example.org:8080/x?y=1",
        "crawl-1.warc#https://user@ads.example.org",
        "https://news.example.net/spam/page.html",
        "//www.news.example.net/spam",
        "https://赌场.example/1",
    ):
        objection = hooks.address(blocked)
        assert objection is not None and objection.rule == "block_list" and str(listed) in objection.detail, blocked
    for free in (
        "https://example.org/ads.example.org",
        "https://badsads.example.org.uk/",
        "https://news.example.net/spammers/1",
        "https://news.example.net/a/spam",
        "folder/ads.example.org/page.html",
    ):
        assert hooks.address(free) is None, free
    assert Hooks(Safety()).address("https://ads.example.org/") is None


def test_lexicon_counts_words_and_characters(tmp_path: Path) -> None:
    terms = tmp_path / "terms.txt"
    terms.write_text("slot machine\nslot\n彩票\n", "utf-8")
    hooks = Hooks(Safety(lexicons=(str(terms),), max_lexicon_share=0.25))
    texts = ["The Slot machine, in the slot of a slots door", "我们买彩票吗", "nothing of the kind", ""]
    documents = [Document(text=text) for text in texts]
    found = hooks.texts(documents, "en")
    assert [document.figures["lexicon_share"] for document in documents] == [0.3, round(2 / 6, 6), 0.0, 0.0]
    assert [None if one is None else (one.rule, one.detail) for one in found] == [
        ("lexicon_share", "most often 'slot machine'"),
        ("lexicon_share", "most often '彩票'"),
        None,
        None,
    ]


def test_each_hook_is_a_reason_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "house_rules.py").write_text("def worst(texts, language):\n    return ['hives' in text for text in texts]\n")
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("house_rules", None)
    (tmp_path / "hosts").write_text("example.org\n")
    (tmp_path / "terms").write_text("chess\n")
    safety = Safety(
        block_lists=(str(tmp_path / "hosts"),),
        lexicons=(str(tmp_path / "terms"),),
        classifier="house_rules:worst",
        max_lexicon_share=0.001,
    )
    names = ("en-bees", "en-chess", "en-glass", "en-kelp")
    pages = [
        Raw(f"https://example.{'org' if name == 'en-kelp' else 'com'}/{name}", page_of(*ARTICLES[name].splitlines()).encode())
        for name in names
    ]
    documents = documents_of(Extractor(Data(safety=safety)), pages, {}, lambda index: None)
    drops = [document.drop for document in documents]
    assert [drop and (drop.stage, drop.rule) for drop in drops] == [
        ("safety", "classifier"),
        ("safety", "lexicon_share"),
        None,
        ("safety", "block_list"),
    ]
    assert documents[2].figures["lexicon_share"] == documents[2].figures["classifier"] == 0.0


@pytest.mark.parametrize(
    "safety",
    [Safety(block_lists=("no-such-file",)), Safety(classifier="no_such_module:f"), Safety(classifier="json:no_such_function")],
)
def test_what_cannot_be_had_is_told(safety: Safety) -> None:
    with pytest.raises(UserError, match="N9-DATA-004"):
        Hooks(safety)


def test_a_classifier_answers_for_each_text() -> None:
    with pytest.raises(ValueError, match="gave 4 figures for 1 texts"):
        Hooks(Safety(classifier="tests.data.test_safety:four")).texts([Document(text="a")], "en")


def four(texts: list[str], language: str) -> list[float]:
    return [0.0] * 4
