from __future__ import annotations

import random
import re

import numpy as np
import pyarrow as pa
import pytest

from ninthsky.data.duplicates.minhash import BANDS, LARGEST, PERMUTATIONS, ROWS, jaccard, overlap, signatures, sketch
from ninthsky.data.duplicates.normal import SEVERAL, fold, tables
from ninthsky.data.made import made_pages

ARTICLES = [page.article for page in made_pages() if page.article]
WIDE = "\u3041-\u30ff\u3400-\u9fff\uac00-\ud7a3"


def words(text: str) -> list[str]:
    """The definition, the slow way: words and single CJK characters."""
    return re.findall(rf"[{WIDE}]|[^\W_{WIDE}]+", fold(text))


def shingles(text: str) -> set[tuple[str, ...]]:
    found = words(text)
    return {tuple(found[i : i + 5]) for i in range(max(len(found) - 4, 1))}


def edited_pairs() -> tuple[list[str], np.ndarray]:
    """Texts, two by two, and the exact similarity of each two."""
    rng = random.Random(5)
    pairs, exact = [], []
    for article in ARTICLES:
        pieces = list(article) if re.search("[\u4e00-\u9fff]", article) else re.split("(?<= )", article)
        for changes in (0, 1, 2, 4, 8, 16, 32):
            changed = list(pieces)
            for _ in range(changes):
                changed[rng.randrange(len(changed))] = (
                    rng.choice("甲乙丙丁") if len(pieces[0]) == 1 else f"other{rng.randrange(999)} "
                )
            pairs += [article, "".join(changed)]
            first, second = shingles(article), shingles("".join(changed))
            exact.append(len(first & second) / len(first | second))
    return pairs, np.array(exact)


def test_estimates_have_the_error_that_theory_gives() -> None:
    """Trap 19: integer promotion once biased estimates by +.22. A proportion errs by .8 of its deviation in the mean."""
    texts, truth = edited_pairs()
    found = signatures(texts)
    estimates = np.array([jaccard(found[2 * i], found[2 * i + 1]) for i in range(len(truth))])
    theory = float((0.8 * np.sqrt(truth * (1 - truth) / PERMUTATIONS)).mean())
    assert len(truth) == 140 and truth.min() < 0.5
    assert abs(estimates - truth).mean() < 1.3 * theory
    assert abs((estimates - truth).mean()) < 3 * float(np.sqrt((truth * (1 - truth) / PERMUTATIONS).sum()) / len(truth)) + 0.004


def test_similarity_of_sets_is_exact() -> None:
    texts, truth = edited_pairs()
    found = sketch(texts)
    sets = np.split(found.sets, found.first[1:-1])
    got = [overlap(sets[2 * i], sets[2 * i + 1]) for i in range(len(truth))]
    assert got == pytest.approx(truth.tolist(), abs=1e-9)


def test_long_texts_are_held_by_their_smallest_hashes() -> None:
    rng = random.Random(2)
    one = [f"word{rng.randrange(10**6)}" for _ in range(12_000)]
    other = list(one)
    for _ in range(250):
        other[rng.randrange(len(other))] = "changed"
    texts = [" ".join(one), " ".join(other)]
    first, second = map(shingles, texts)
    found = sketch(texts)
    assert np.diff(found.first).tolist() == [LARGEST, LARGEST]
    exact = len(first & second) / len(first | second)
    assert overlap(*np.split(found.sets, found.first[1:-1])) == pytest.approx(exact, abs=0.03)


def test_texts_that_are_alike_share_a_band() -> None:
    """1 - (1 - J^7)^16 of the pairs at J do."""
    texts, truth = edited_pairs()
    bands = sketch(texts).bands
    shared = (bands[0::2] == bands[1::2]).any(axis=1)
    expected = 1 - (1 - truth**ROWS) ** BANDS
    assert abs(shared.mean() - expected.mean()) < 0.06
    assert shared[truth >= 0.8].mean() > 0.95


def test_unlike_texts_have_nothing_in_common() -> None:
    found = signatures(ARTICLES)
    assert max(jaccard(a, b) for i, a in enumerate(found) for b in found[:i]) < 0.05


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("The café opens: at nine, every day of it", "the CAFE opens at nine every day of it!"),
        ("清早五点，渡口还罩在雾里。", "清早五点渡口 还罩在雾里"),
        ("ＡＢＣ ｄｅｆ １２３", "abc def 123"),
        ("Die große Straße ﬁndet ①", "DIE GROSSE STRASSE findet 1"),
        ("٣ أيام", "3 أيام"),
        ("ガラス カフェ", "ガラス カフェ"),
        ("ne\u0301e naïve", "nee naive"),
        ("㌔メートル 𠮷野", "キロメートル、𠮷野"),
    ],
)
def test_case_accents_width_and_punctuation_do_not_matter(one: str, other: str) -> None:
    found = sketch([one, other])
    assert (found.hashes[0] == found.hashes[1]).all() and (found.bands[0] == found.bands[1]).all()
    first, second = signatures([one, other])
    assert jaccard(first, second) == 1 and words(one) == words(other)


def test_other_texts_have_other_hashes() -> None:
    texts = ["hello world", "hello word", "helloworld", "world hello", "hello", "", "天地", "地天"]
    assert len({tuple(row) for row in sketch(texts).hashes.tolist()}) == len(texts)


def test_short_and_empty_texts() -> None:
    found = signatures(["", "one", "one", "two", "......"])
    assert jaccard(found[1], found[2]) == 1 and jaccard(found[1], found[3]) < 0.2
    assert signatures([]).shape == (0, PERMUTATIONS)
    nothing = sketch(["", "..."])
    assert len(nothing.sets) == 0 and not nothing.bands.any()
    assert len(sketch([]).hashes) == 0


def test_texts_are_the_same_alone_in_company_and_as_a_slice() -> None:
    everything = sketch(ARTICLES)
    alone = sketch([ARTICLES[3]])
    slice_ = sketch(pa.array(ARTICLES, pa.large_string())[3:5])
    for one in (alone, slice_):
        assert (one.hashes[0] == everything.hashes[3]).all() and (one.bands[0] == everything.bands[3]).all()


def test_no_code_point_has_more_tokens_than_there_is_room_for() -> None:
    table = tables()
    for point in np.flatnonzero(table.points >> 24 == SEVERAL).tolist():
        assert len(words(chr(point))) <= 2 * len(chr(point).encode())
