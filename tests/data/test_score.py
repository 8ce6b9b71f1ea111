from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ninthsky.data.blocks import decode, parse
from ninthsky.data.features import NAMES, features, units
from ninthsky.data.fit import fit, fitted_on, kept_text, labels
from ninthsky.data.measure import token_f1
from ninthsky.data.score import best_run, choose, spans, weights


def gain_of(chosen: list[tuple[int, int]], gain: np.ndarray, switch: float) -> float:
    return float(sum(gain[first:last].sum() for first, last in chosen) - switch * len(chosen))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-4, 4).map(lambda x: round(x, 2)), min_size=1, max_size=8), st.sampled_from([0.0, 1.0, 3.0]))
def test_spans_are_the_best_of_all(scores: list[float], switch: float) -> None:
    size = np.arange(len(scores)) * 3.0
    gain = np.array(scores) * np.sqrt(size + 1)
    found = spans(np.array(scores), size, switch)
    assert all(first < last for first, last in found) and all(a[1] < b[0] for a, b in itertools.pairwise(found))
    best = 0.0
    for mask in itertools.product((0, 1), repeat=len(scores)):
        runs = [key for key, _ in itertools.groupby(mask)].count(1)
        best = max(best, float((gain * mask).sum()) - switch * runs)
    assert gain_of(found, gain, switch) == pytest.approx(best, abs=1e-9)
    assert bool(found) == (best_run(np.array(scores), size) > switch + 1e-9) or best_run(
        np.array(scores), size
    ) == pytest.approx(switch)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=60), max_size=8))
def test_figures_are_finite_for_any_text(parts: list[str]) -> None:
    page = parse("".join(f"<p>{part}</p>" for part in parts))
    figures = features(page)
    assert figures.shape == (len(page.blocks), len(NAMES)) and np.isfinite(figures).all()


def test_a_page_of_nothing() -> None:
    assert choose(parse(""))[0] == [] and choose(parse("<p> </p>"))[0] == []


def test_units_count_words_and_chinese_characters() -> None:
    assert units(parse("<p>one two three</p><p>一二三四五</p>")) == pytest.approx([3, 3.0])


def test_shipped_weights_fit_the_figures() -> None:
    fitted = weights()
    assert fitted.mean.shape == (len(NAMES),) and fitted.first.shape[1] == len(NAMES)


def test_fitting_learns_a_rule_that_is_there() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4_000, 5))
    y = (x[:, 0] * x[:, 1] > 0).astype(float)
    first, first_bias, second, bias = fit(x, y, np.ones(len(x)), seed=0, hidden=16, epochs=150)
    guess = np.maximum(x @ first + first_bias, 0) @ second + bias > 0
    assert (guess == y).mean() > 0.9


def test_labels_follow_the_true_article() -> None:
    page = parse("<p>Menu</p><p>The first paragraph of it.</p><p>Second one, slightly changed here.</p><p>Copyright us</p>")
    truth = "The first paragraph of it.\nSecond one, slightly changed there."
    assert labels(page, truth).tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize(("language", "least"), [("en", 0.75), ("zh", 0.90)])
def test_pages_not_fitted_on(shared_data: Path, language: str, least: float) -> None:
    """The benchmark reports the exact figures on all of them; this holds a floor on sixty."""
    rows = pq.read_table(shared_data / "web" / "pages.parquet", filters=[("language", "=", language)]).to_pylist()
    rows = [row for row in rows if not fitted_on(row["id"])][:60]
    assert len(rows) > 10
    figures = []
    for row in rows:
        page = parse(decode(row["html"])[0])
        figures.append(token_f1(kept_text(page, choose(page)[0]), row["main_text"])[2])
    assert sum(figures) / len(figures) > least


@pytest.mark.parametrize("tag", ["p", "div"])
def test_the_spam_wrapped_page(shared_data: Path, tag: str) -> None:
    """A real one. Nothing was tuned on it; the article is kept nearly whole and no spam line is."""
    raw = (shared_data / "web" / "spam_wrapped_article.txt").read_text("utf-8")
    article = raw[raw.index("大国工匠丨") : raw.index("相关推荐")]
    page = parse("".join(f"<{tag}>{line}</{tag}>" for line in raw.splitlines() if line.strip()))
    kept = kept_text(page, choose(page)[0])
    precision, recall, _ = token_f1(kept, article)
    assert precision > 0.98 and recall > 0.9
    assert not any(word in kept for word in ("123456", "磐安县", "咨询", "康熙来了"))
