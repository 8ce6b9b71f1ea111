from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ninthsky.data.made import made_pages
from ninthsky.data.tokens import SPECIAL, Listing, held_out_groups, texts_at, train_tokenizer
from ninthsky.run.folder import RunFolder
from tests.data.conftest import Run

ARTICLES = [page.article for page in made_pages() if page.article]


def test_special_tokens_are_the_first_ids() -> None:
    tokenizer = train_tokenizer(ARTICLES, 400)
    assert [tokenizer.token_to_id(token) for token in SPECIAL] == [0, 1, 2, 3, 4, 5]
    assert tokenizer.get_vocab_size() == 400


def test_any_text_comes_back() -> None:
    tokenizer = train_tokenizer(ARTICLES, 400)
    for text in [*ARTICLES, "  two  spaces\n\ttab", "emoji 🦆 and ελληνικά", "\x00\x7f"]:
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


def test_training_is_deterministic() -> None:
    assert train_tokenizer(ARTICLES, 600).to_str() == train_tokenizer(list(ARTICLES), 600).to_str()


def test_too_small_a_vocabulary() -> None:
    with pytest.raises(ValueError, match="at least 262"):
        train_tokenizer(ARTICLES, 200)


def test_held_out_takes_groups_whole_and_every_language() -> None:
    groups = [f"page {i // 3}" for i in range(300)]
    languages = ["en" if i % 3 == 0 else "zh" for i in range(300)]
    out = held_out_groups(groups, languages, 0.05, seed=7)
    count = sum(name in out for name in groups)
    assert 15 <= count <= 21 and count % 3 == 0
    assert held_out_groups(groups, languages, 0.05, seed=7) == out != held_out_groups(groups, languages, 0.05, seed=8)
    # A rare language is held out too, and something is always left to train on.
    rare = held_out_groups([*groups, "alone a", "alone b"], [*languages, "fr", "fr"], 0.05, seed=7)
    assert len(rare & {"alone a", "alone b"}) == 1
    assert held_out_groups(["a", "b"], ["en", "en"], 1.0, seed=1) in ({"a"}, {"b"})
    assert held_out_groups(["a", "b"], ["en", "en"], 0.0, seed=1) == set()


def test_tokens_come_in_files_of_bounded_size(corpus: RunFolder, run_data: Run, tmp_path: Path) -> None:
    """Other file sizes and a vocabulary from a sample: the index addresses the same documents in the same order."""
    again = tmp_path / "run"
    shutil.copytree(corpus.path, again)
    settings = corpus_settings(corpus)
    source = settings["data"]["sources"][0]
    whole = index_of(corpus)
    run = run_data(source, into=again, page_seconds=20, held_out=0.1, shard_tokens=2_000)
    cut = index_of(run)
    folder = run.stage("data.tokens") / "tokens"
    for name, split in cut["splits"].items():
        files = split["files"]
        assert sum(file["tokens"] for file in files) == split["tokens"] == whole["splits"][name]["tokens"]
        assert sum(file["documents"] for file in files) == split["documents"]
        assert all(file["tokens"] <= 2_000 or file["documents"] == 1 for file in files)
        data = b"".join((folder / file["file"]).read_bytes() for file in files)
        assert data == (corpus.stage("data.tokens") / "tokens" / f"{name}.bin").read_bytes()
        assert split["parts"] == whole["splits"][name]["parts"] and split["file"] == files[0]["file"] == f"{name}.bin"
    assert len(cut["splits"]["train"]["files"]) > 2


def test_a_sample_is_drawn_and_read_back(corpus: RunFolder) -> None:
    sources = sorted((corpus.stage("data.corpus") / "documents").glob("*.parquet"))
    listing = Listing.of(sources)
    everything = list(range(len(listing.id)))
    assert (
        listing.sample(everything, 10**9, seed=1) != everything and sorted(listing.sample(everything, 10**9, 1)) == everything
    )
    few = listing.sample(everything, 2_000, seed=1)
    assert few == listing.sample(everything, 10**9, seed=1)[: len(few)] and 0 < len(few) < len(everything)
    assert sum(listing.characters[i] for i in few[:-1]) < 2_000 <= sum(listing.characters[i] for i in few)
    assert [len(text) for text in texts_at(sources, few)] == [listing.characters[i] for i in few]


def corpus_settings(run: RunFolder) -> Any:
    return json.loads((run.path / "settings.json").read_text("utf-8"))


def index_of(run: RunFolder) -> Any:
    return json.loads((run.stage("data.tokens") / "tokens" / "index.json").read_text("utf-8"))
