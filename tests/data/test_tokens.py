from __future__ import annotations

import pytest

from ninthsky.data.made import made_pages
from ninthsky.data.tokens import SPECIAL, held_out_groups, train_tokenizer

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
