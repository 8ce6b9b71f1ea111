from __future__ import annotations

import itertools

from ninthsky.data.blocks import decode, parse
from ninthsky.data.duplicates.minhash import jaccard, signatures
from ninthsky.data.made import made_pages, source, true_article


def test_there_are_24_and_four_are_shells() -> None:
    pages = made_pages()
    assert len(pages) == 24 and len({page.name for page in pages}) == 24
    assert sum(not page.article for page in pages) == 4
    assert {page.language for page in pages} == {"en", "zh"}
    assert sum(page.encoding.startswith("gb") for page in pages) == 2
    assert source().made and len(source().entries) == 24


def test_every_article_stands_in_its_page_and_is_its_own() -> None:
    for page in made_pages():
        text = "\n".join(block.text for block in parse(decode(page.html)[0]).blocks)
        paragraphs = page.article.splitlines()
        assert all(paragraph in text for paragraph in paragraphs), page.name
        assert len(text) > 1.2 * len(page.article)
        assert not page.article or len(paragraphs) >= 4
        assert true_article(f"{page.name}.html") == page.article
    sketches = signatures([page.article for page in made_pages() if page.article])
    assert all(jaccard(a, b) < 0.05 for a, b in itertools.combinations(sketches, 2))
    assert true_article("no such page") is None


def test_numbers_are_fictional() -> None:
    for page in made_pages():
        text = decode(page.html)[0]
        for number in ("400-000-", "555-01", "123456", "010-0000"):
            text = text.replace(number, "")
        assert "1380" not in text and "+86" not in text


def test_the_same_bytes_every_time() -> None:
    before = [page.html for page in made_pages()]
    made_pages.cache_clear()
    assert [page.html for page in made_pages()] == before
