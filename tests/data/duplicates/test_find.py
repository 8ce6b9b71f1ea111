from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from ninthsky.data.duplicates import candidates, runs
from ninthsky.data.duplicates.blocks import ANYWHERE, LONG, lines, site_of
from ninthsky.data.duplicates.find import Found, find
from ninthsky.data.duplicates.shard import leave, rank
from ninthsky.data.made import made_pages
from tests.data.duplicates.test_minhash import shingles

ARTICLES = [page.article for page in made_pages() if page.article]
Ask = Callable[..., Found]


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    """`ask(texts, shards=2, ...)`: what goes of texts, cut into shards; the longest stays."""
    number = 0

    def run(
        texts: Sequence[str], shards: int = 2, sites: Sequence[str] | None = None, pages: int = 0, share: float = 0.1
    ) -> Found:
        nonlocal number
        number += 1
        folders = []
        for shard, chosen in enumerate(np.array_split(np.arange(len(texts)), shards)):
            part = [texts[index] for index in chosen]
            folders.append(tmp_path / f"{number}-{shard}")
            names = [sites[index] if sites else "site" for index in chosen]
            leave(folders[-1], range(len(part)), part, [rank(1, len(text)) for text in part], names)
        return find(folders, tmp_path / f"{number}-reduce", 0.8, pages, share)

    return run


def clusters() -> list[str]:
    words = ARTICLES[0].split()
    near = " ".join([*words[:-3], "and", "so"])
    further = " ".join(["But", *words[2:-3], "and", "so"])
    return [ARTICLES[1], near, ARTICLES[0], further, ARTICLES[2]]


def test_survivor_is_the_longest_whatever_the_order_and_the_shards(ask: Ask) -> None:
    texts = clusters()
    expected = max(texts[1:4], key=len)
    for seed in range(4):
        shuffled = random.Random(seed).sample(texts, len(texts))
        found = ask(shuffled, shards=seed + 1)
        assert {shuffled[d] for d in found.near["survivor"]} == {expected}
        assert {shuffled[d] for d in found.near["document"]} == set(texts[1:4]) - {expected}
        assert (found.near["link_similarity"] >= 0.8).all() and len(found.equal) == 0


def test_similarities_are_those_of_the_definition(ask: Ask) -> None:
    texts = clusters()
    sets = [shingles(text) for text in texts]
    for record in ask(texts).near:
        for other, similarity in ((record["survivor"], record["similarity"]), (record["link"], record["link_similarity"])):
            one, two = sets[record["document"]], sets[other]
            assert similarity == pytest.approx(len(one & two) / len(one | two), abs=1e-6)


def test_equal_texts_go_first(ask: Ask) -> None:
    found = ask([ARTICLES[0], ARTICLES[1], ARTICLES[0].upper(), ARTICLES[0] + " Yes.", ARTICLES[0]])
    assert found.equal["document"].tolist() == [2, 4] and set(found.equal["survivor"].tolist()) == {0}
    assert found.near["document"].tolist() == [0] and found.near["survivor"].tolist() == [3]


def test_chains_hang_together_link_by_link(ask: Ask) -> None:
    """Each version changes what the one before left: the last is unlike the first, and hangs on it through the others."""
    words = ARTICLES[0].split()
    versions = []
    for step in range(6):
        words = [*words]
        words[20 * step : 20 * step + 3] = [f"step{step}a", f"step{step}b", f"step{step}c"]
        versions.append(" ".join([*words, *[f"more{extra}" for extra in range(3 * (6 - step))]]))
    found = ask(versions)
    links = dict(zip(found.near["document"].tolist(), found.near["link"].tolist(), strict=True))
    assert set(found.near["survivor"].tolist()) == {0} and set(links) == {1, 2, 3, 4, 5}
    for document in links:
        path = [document]
        while path[-1] != 0:
            path.append(links[path[-1]])
            assert len(path) <= 6
    assert found.near["similarity"][-1] < 0.8 < found.near["link_similarity"].min()


def test_below_the_threshold_nothing_goes(ask: Ask) -> None:
    half = " ".join([*ARTICLES[0].split()[: len(ARTICLES[0].split()) // 2], *ARTICLES[1].split()])
    assert len(ask([ARTICLES[0], half]).near) == 0


def test_crowded_buckets(ask: Ask) -> None:
    texts = [ARTICLES[0] + f" Ending number {i}." for i in range(3 * candidates.LEADERS)]
    found = ask(texts)
    assert len(found.near) == len(texts) - 1 and len(set(found.near["survivor"].tolist())) == 1


def test_partitions_and_batches_change_nothing(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(3)
    texts = []
    for article in ARTICLES[:11]:
        words = article.split()
        for _ in range(4):
            copy = list(words)
            copy[rng.randrange(len(copy))] = "changed"
            texts += [" ".join(copy), " ".join(words)]
    whole = ask(texts, sites=["a", "b"] * 44, pages=3)
    monkeypatch.setattr(runs, "PARTITION", 40)
    monkeypatch.setattr(candidates, "_AT_ONCE", 500)
    cut = ask(texts, shards=5, sites=["a", "b"] * 44, pages=3)
    assert len(whole.near) > 20 and len(whole.equal) > 20
    assert (whole.equal == cut.equal).all() and (whole.repeated == cut.repeated).all()
    for name in ("document", "survivor", "similarity"):
        assert (whole.near[name] == cut.near[name]).all()


def test_a_reduce_that_was_killed_goes_on(ask: Ask, tmp_path: Path) -> None:
    texts = [*clusters(), *clusters()]
    first = ask(texts, pages=1)
    folders = sorted(folder for folder in tmp_path.iterdir() if folder.name in ("1-0", "1-1"))
    work = tmp_path / "1-reduce"
    (work / "edges-00000").unlink()
    (work / "edges-00000.draft").write_bytes(b"half")
    again = find(folders, work, 0.8, 1, 0.1)
    assert all((one == other).all() for one, other in zip(first, again, strict=True))


def test_a_corpus_of_nothing(ask: Ask) -> None:
    found = ask(["", "...", "x"], pages=1)
    assert found.equal["document"].tolist() == [0] and len(found.near) == 0
    assert all(len(part) == 0 for part in ask([], shards=1, pages=1))


SENTENCES = [f"{chr(97 + i % 26)}{i} is told on page {i} and by nobody else in the county" for i in range(400)]


def test_blocks_on_many_pages_of_a_site(ask: Ask) -> None:
    notice = "All that is written here belongs to the paper and may not be printed elsewhere"
    assert len(notice.split()) >= LONG
    texts, sites = [], []
    for i in range(60):
        parts = [SENTENCES[3 * i], SENTENCES[3 * i + 1], SENTENCES[3 * i + 2]]
        if i < 12:
            parts.insert(1, notice)  # long, on 12 pages of a large site: over 10
        if i < 8:
            parts.append("Next page")  # short, on 8 of 40: within
        if i >= 40:
            parts.append("Print this")  # short, on 20 of 20
        texts.append("\n".join(parts))
        sites.append("large" if i < 40 else "small")
    keys = dict(zip(lines([notice, "Next page", "Print this"]).keys.tolist(), "npq", strict=True))
    found = ask(texts, sites=sites, pages=10, share=0.25)
    within = [(keys[r["key"]], int(r["pages"]), int(r["limit"])) for r in found.repeated if r["site"] != ANYWHERE]
    anywhere = [(keys[r["key"]], int(r["pages"]), int(r["limit"])) for r in found.repeated if r["site"] == ANYWHERE]
    assert sorted(within) == [("n", 12, 10), ("q", 20, 10)] and anywhere == [("q", 20, 15)]


def test_copies_of_one_article_are_no_shell(ask: Ask) -> None:
    """Thirty copies share every block; one stays as the near duplicates' survivor, with all its blocks."""
    copies = [ARTICLES[0] + f"\nEnding number {i}." for i in range(30)]
    found = ask(copies, pages=3)
    assert len(found.near) == 29 and len(found.repeated) == 0


def test_lines_and_sites() -> None:
    found = lines(["one\ntwo", "", "...\nTWO!"])
    assert found.first.tolist() == [0, 2, 3, 5]
    assert found.keys[1] == found.keys[4] != found.keys[0] and found.keys[2] == found.keys[3] == 0
    assert lines(["a b c d e f g h i j k l"]).keys[0] % 2 == 1 and lines(["a b c"]).keys[0] % 2 == 0
    assert site_of("crawl", "https://news.example.org/a?b") == "news.example.org" and site_of("crawl", "a/b.html") == "crawl"


def test_rank() -> None:
    assert rank(0.99, 10) < rank(0.98, 500) and rank(1, 500) < rank(1, 499) and rank(0.991, 5) == rank(0.99, 5)
