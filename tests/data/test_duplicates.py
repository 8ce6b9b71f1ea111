from __future__ import annotations

import random
import re

import numpy as np
import pytest

from ninthsky.data.duplicates import fold, jaccard, near_duplicates, signatures, text_hash
from ninthsky.data.made import made_pages

ARTICLES = [page.article for page in made_pages() if page.article]


def shingles(text: str) -> set[tuple[str, ...]]:
    """The definition, the slow way: words and single CJK characters, five at a time."""
    tokens = re.findall(
        r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+", fold(text).decode()
    )
    return {tuple(tokens[i : i + 5]) for i in range(max(len(tokens) - 4, 1))}


def test_estimates_have_the_error_that_theory_gives() -> None:
    """Trap 19: integer promotion once biased estimates by +.22. A proportion errs by .8 of its deviation in the mean."""
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
            pairs.append((article, "".join(changed)))
            first, second = shingles(article), shingles("".join(changed))
            exact.append(len(first & second) / len(first | second))
    sketches = signatures([text for pair in pairs for text in pair])
    estimates = np.array([jaccard(sketches[2 * i], sketches[2 * i + 1]) for i in range(len(pairs))])
    truth = np.array(exact)
    theory = float((0.8 * np.sqrt(truth * (1 - truth) / 112)).mean())
    assert len(pairs) == 140 and truth.min() < 0.5
    assert abs(estimates - truth).mean() < 1.3 * theory
    assert abs((estimates - truth).mean()) < 3 * float(np.sqrt((truth * (1 - truth) / 112).sum()) / len(truth)) + 0.004


def test_unlike_texts_have_nothing_in_common() -> None:
    sketches = signatures(ARTICLES)
    assert max(jaccard(a, b) for i, a in enumerate(sketches) for b in sketches[:i]) < 0.05


def test_case_accents_width_and_punctuation_do_not_matter() -> None:
    first, second = signatures(["The café opens: at nine, every day of it", "the CAFE opens at nine every day of it!"])
    assert jaccard(first, second) == 1
    first, second = signatures(["清早五点，渡口还罩在雾里。", "清早五点渡口还罩在雾里"])
    assert jaccard(first, second) == 1


def test_short_and_empty_texts() -> None:
    sketches = signatures(["", "one", "one", "two", "......"])
    assert jaccard(sketches[1], sketches[2]) == 1 and jaccard(sketches[1], sketches[3]) < 0.2
    assert signatures([]).shape == (0, 112)


def test_signatures_are_the_same_alone_and_in_company() -> None:
    assert (signatures(ARTICLES)[3] == signatures([ARTICLES[3]])[0]).all()


def test_text_hash() -> None:
    assert text_hash("Hello,  World") == text_hash("hello world!") != text_hash("hello word")
    assert text_hash("ＡＢＣ") == text_hash("abc")


def clusters() -> list[str]:
    words = ARTICLES[0].split()
    near = " ".join([*words[:-3], "and", "so"])
    further = " ".join(["But", *words[2:-3], "and", "so"])
    return [ARTICLES[1], near, ARTICLES[0], further, ARTICLES[2]]


def test_survivor_is_the_smallest_whatever_the_order() -> None:
    texts = clusters()
    ranks = {text: (-len(text), text) for text in texts}
    expected = min(texts[1:4], key=ranks.__getitem__)
    for seed in range(5):
        shuffled = random.Random(seed).sample(texts, len(texts))
        found = near_duplicates(signatures(shuffled), [ranks[text] for text in shuffled], 0.8)
        assert {shuffled[d.survivor] for d in found} == {expected}
        assert {shuffled[d.index] for d in found} == set(texts[1:4]) - {expected}
        assert all(d.similarity > 0.8 and d.linked_similarity >= d.similarity for d in found)


def test_threshold_is_obeyed() -> None:
    words = ARTICLES[0].split()
    half = " ".join([*words[: len(words) // 2], *ARTICLES[1].split()])
    sketches = signatures([ARTICLES[0], half])
    similarity = jaccard(sketches[0], sketches[1])
    assert 0.1 < similarity < 0.6
    assert near_duplicates(sketches, [(0,), (1,)], similarity + 0.01) == []


def test_crowded_buckets() -> None:
    texts = [ARTICLES[0] + f" Ending number {i}." for i in range(60)]
    found = near_duplicates(signatures(texts), [(i,) for i in range(60)], 0.8)
    assert [d.index for d in found] == list(range(1, 60)) and {d.survivor for d in found} == {0}


def test_pairs_above_the_threshold_are_found() -> None:
    rng = random.Random(1)
    words = " ".join(ARTICLES[:11]).split()
    texts = []
    for _ in range(150):
        start = rng.randrange(len(words) - 250)
        document = words[start : start + 250]
        rng.shuffle(document)
        copy = list(document)
        copy[rng.randrange(250)] = "changed"
        texts += [" ".join(document), " ".join(copy)]
    sketches = signatures(texts)
    found = {d.index for d in near_duplicates(sketches, [(i,) for i in range(len(texts))], 0.8)}
    truly = [i for i in range(0, 300, 2) if jaccard(sketches[i], sketches[i + 1]) >= 0.8]
    assert sum(i + 1 in found for i in truly) / len(truly) > 0.95


@pytest.mark.parametrize("text", ["plain", "naïve Ünïcode", "混合 mixed 文本"])
def test_fold_is_lower_case_utf8(text: str) -> None:
    assert fold(text).decode() == fold(text.upper()).decode()
