"""Fits the block scoring: `python -m ninthsky.data.fit PAGES.parquet [WEIGHTS.npz]` writes weights.npz beside this file.

PAGES.parquet has columns id, set, language, html, main_text (hand-checked article text). Half of the pages, chosen by a hash
of their id, are fitted on; the other half is never looked at here and is what benchmarks report on (`fitted_on`). Half as many
pages again are made up from the fitted half: true articles, their tags taken away, inside shells of other fitted pages'
non-article blocks and of generated hotlines, lure titles and place lists. The made pages of the demo are not read.
"""

from __future__ import annotations

import html
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import xxhash

from ninthsky.data.blocks import Page, decode, parse
from ninthsky.data.features import NAMES, features, units
from ninthsky.data.measure import token_f1
from ninthsky.data.score import Weights, spans

Array = npt.NDArray[Any]
Labelled = tuple[Page, Array, str, bool]  # page, labels of its blocks, true article, whether it is Chinese
_BLANK = re.compile(r"\s+")


def fitted_on(id: str) -> bool:
    """Whether the weights saw this page."""
    return xxhash.xxh3_64_intdigest(id.encode()) % 2 == 0


def labels(page: Page, truth: str) -> Array:
    """1 where a block's text stands in the true article, else 0; float [blocks]."""
    whole = _BLANK.sub("", truth).lower()
    lines = {_BLANK.sub("", line).lower() for line in truth.splitlines()}
    shingles = {whole[i : i + 8] for i in range(len(whole) - 7)}
    out = np.zeros(len(page.blocks))
    for index, block in enumerate(page.blocks):
        text = _BLANK.sub("", block.text).lower()
        if len(text) < 12:
            out[index] = text in lines or (len(text) > 5 and text in whole)
        elif text in whole:
            out[index] = 1
        else:
            own = [text[i : i + 8] for i in range(len(text) - 7)]
            out[index] = sum(piece in shingles for piece in own) / len(own) > 0.6
    return out


# -- pages made up from the fitted half ---------------------------------------------------------------------------------


_SYLLABLES = "安平阳城江河山海东南西北新宁兴州林泉湖川石龙云春永福通昌清德广太嘉建定武康丰"
_STEMS = "Ash Bright Clay Dun East Fair Glen Hart Kings Lake Mill North Oak Port Red Stone West Wood"
_ENDS = "bury ford ham land ley mont port ton view ville wick worth"
_DEVICES = "空调 冰箱 热水器 燃气灶 洗衣机 保险柜 指纹锁 壁挂炉 电视机 油烟机"
_TRADES = "plumber locksmith towing roofing boiler appliance printer router garage"
_HOTLINES_CJK = """
全国统一客服电话:{n}
{w}维修24小时服务热线:{n}
(1){n}(点击咨询)(2){n}(点击咨询)
{w}售后电话：{n}，各区网点均可报修
拨打{n}，师傅30分钟上门
{w}厂家客服中心 {n}
{w}维修服务进度短信通知:我们会把维修进度用短信告诉您。
更新时间:
为您提供{w}安装、清洗、移机等一站式服务,价格透明,随叫随到。
"""
_HOTLINES = """
Call now: {n}
24/7 emergency {w} hotline {n}
{w} repair near you - {n} - free quote
Toll-free {n} (click to call)
Best {w} service, same day, call {n}
Our certified {w} experts answer {n} day and night, no hidden fees.
Updated:
"""


def _place_list(rng: random.Random, chinese: bool) -> str:
    if chinese:
        counties = []
        for _ in range(rng.randint(3, 16)):
            first, second = rng.sample(_SYLLABLES, 2), rng.sample(_SYLLABLES, 2)
            counties.append("".join([*first, rng.choice("市市县区州"), *second, rng.choice("区县旗镇乡市")]))
        return rng.choice("、、，").join(counties)
    towns = [rng.choice(_STEMS.split()) + rng.choice(_ENDS.split()) for _ in range(rng.randint(5, 24))]
    return rng.choice([", ", " | ", ", "]).join(towns)


def _hotline(rng: random.Random, chinese: bool) -> str:
    def digits(count: int) -> str:
        return "".join(rng.choice("0123456789") for _ in range(count))

    if chinese:
        number = rng.choice([f"400-{digits(3)}-{digits(4)}", digits(6), f"0{digits(2)}-{digits(8)}", f"1{digits(10)}"])
        pattern, what = rng.choice(_HOTLINES_CJK.strip().split("\n")), rng.choice(_DEVICES.split())
    else:
        number = rng.choice(
            [f"1-800-{digits(3)}-{digits(4)}", f"({digits(3)}) 555-{digits(4)}", f"+1 {digits(3)} 555 {digits(4)}"]
        )
        pattern, what = rng.choice(_HOTLINES.strip().split("\n")), rng.choice(_TRADES.split())
    return pattern.format(n=number, w=what)


def made_up(pages: list[Labelled], rng: random.Random) -> tuple[str, str]:
    """HTML and its true article: one page's article inside a shell from the others and from the generators."""
    page, truth, _, chinese = rng.choice(pages)
    article = [block.text for block, label in zip(page.blocks, truth, strict=True) if label]
    same = [entry for entry in pages if entry[3] == chinese]
    fragments = [
        block.text
        for entry in rng.sample(same, min(6, len(same)))
        for block, label in zip(entry[0].blocks, entry[1], strict=True)
        if not label
    ]
    stem = rng.choice([text for text in fragments if 4 < len(text) < 40] or ["-"])

    def shell(count: int) -> list[str]:
        out = []
        for _ in range(count):
            kind = rng.random()
            if kind < 0.35:
                out.append(_place_list(rng, chinese))
            elif kind < 0.55:
                out.append(_hotline(rng, chinese))
            elif kind < 0.75:
                out.append(f"{stem}{rng.choice(['- ', ': ', ' | ', '_'])}{rng.choice(fragments or [stem])[:40]}")
            else:
                start = rng.randrange(len(fragments)) if fragments else 0
                out += fragments[start : start + rng.randint(1, 8)]
        return out

    parts = (
        [(text, 0) for text in shell(rng.randint(0, 30))]
        + [(text, 1) for text in article]
        + [(text, 0) for text in shell(rng.randint(0, 25))]
    )
    if rng.random() < 0.15:  # a shell with nothing in it
        parts = [part for part in parts if not part[1]]
        article = []
    if article and len(article) > 6 and rng.random() < 0.3:
        cut = (
            len([part for part in parts if not part[1]])
            and next(i for i, part in enumerate(parts) if part[1]) + len(article) // 2
        )
        parts[cut:cut] = [(text, 0) for text in shell(rng.randint(1, 3))]
    style = rng.random()
    if style < 0.5:
        body = "".join(f"<p>{html.escape(text)}</p>" for text, _ in parts)
    elif style < 0.75:
        body = "".join(f"<div>{html.escape(text)}</div>" for text, _ in parts)
    elif style < 0.9:
        body = "<div>" + "<br>".join(html.escape(text) for text, _ in parts) + "</div>"
    else:
        body = "".join(
            f"<li><a href='#'>{html.escape(t)}</a></li>" if not label and len(t) < 60 else f"<p>{html.escape(t)}</p>"
            for t, label in parts
        )
    title = html.escape(page.title if rng.random() < 0.6 else stem)
    return f"<html><head><title>{title}</title></head><body>{body}</body></html>", "\n".join(article)


# -- the network ----------------------------------------------------------------------------------------------------------


def fit(
    x: Array, y: Array, weight: Array, seed: int, hidden: int = 32, epochs: int = 30, decay: float = 3e-4
) -> tuple[Array, Array, Array, float]:
    """Adam on the weighted cross-entropy of one hidden layer with input dropout; x is standardised already."""
    rng = np.random.default_rng(seed)
    inputs = x.shape[1]
    parameters: list[Any] = [
        rng.normal(0, (2 / inputs) ** 0.5, (inputs, hidden)),
        np.zeros(hidden),
        rng.normal(0, hidden**-0.5, hidden),
        np.zeros(1),
    ]
    batch, step = 512, 0
    total = epochs * (len(x) // batch)
    parameters = [parameter.astype(x.dtype) for parameter in parameters]
    first, second = [np.zeros_like(p) for p in parameters], [np.zeros_like(p) for p in parameters]
    for _ in range(epochs):
        order = rng.permutation(len(x))
        for start in range(0, len(order) - batch + 1, batch):
            chosen = order[start : start + batch]
            z = x[chosen] * ((rng.random((batch, inputs), np.float32) > 0.1) * np.float32(1 / 0.9))
            h = np.maximum(z @ parameters[0] + parameters[1], 0)
            p = 1 / (1 + np.exp(-(h @ parameters[2] + parameters[3])))
            error = (p - y[chosen]) * weight[chosen] / weight[chosen].sum()
            back = np.outer(error, parameters[2]) * (h > 0)
            gradients = [
                z.T @ back + decay * parameters[0],
                back.sum(0),
                h.T @ error + decay * parameters[2],
                np.array([error.sum()]),
            ]
            step += 1
            rate = 3e-3 * min(1.0, step / 100) * (1 - step / (total + 1))
            for i, gradient in enumerate(gradients):
                first[i] = 0.9 * first[i] + 0.1 * gradient
                second[i] = 0.99 * second[i] + 0.01 * gradient**2
                parameters[i] = parameters[i] - rate * (first[i] / (1 - 0.9**step)) / (
                    np.sqrt(second[i] / (1 - 0.99**step)) + 1e-8
                )
    return parameters[0], parameters[1], parameters[2], float(parameters[3][0])


def ensemble(rows: list[tuple[Array, Array, Array]], members: int, switch: float = 4.0, bias: float = 0.0) -> Weights:
    """Weights fitted on (features, labels, units) of pages. Pages weigh alike; within a page blocks weigh by length."""
    x = np.concatenate([row[0] for row in rows])
    y = np.concatenate([row[1] for row in rows])
    weight = np.concatenate([np.sqrt(row[2] + 1) / np.sqrt(row[2] + 1).sum() ** 0.7 for row in rows])
    weight /= weight.mean()
    mean, scale = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64) + 0.05
    z = np.clip((x - mean) / scale, -6, 6).astype(np.float32)
    y, weight = y.astype(np.float32), weight.astype(np.float32)
    fitted = [fit(z, y, weight, seed) for seed in range(members)]
    first, first_bias, second = (np.stack([member[part] for member in fitted]) for part in range(3))
    return Weights(mean, scale, first, first_bias, second, np.array([member[3] for member in fitted]), switch, bias)


def kept_text(page: Page, chosen: list[tuple[int, int]]) -> str:
    """Text of the kept blocks."""
    return "\n".join(text for first, last in chosen for text in page.texts(first, last))


Scored = list[tuple[Page, Array, Array, str]]  # page, scores, units, truth


def choose_switch(scored: Scored) -> tuple[float, float, float]:
    """(cost of a span, bias) with the best mean F1 over pages that were scored by weights not fitted on them, and that F1."""
    best = (-1.0, 0.0, 0.0)
    for switch in (0.0, 1.0, 2.0, 4.0, 8.0):
        for bias in (-0.5, 0.0, 0.5, 1.0, 1.5):
            f1 = [token_f1(kept_text(page, spans(score + bias, size, switch)), truth)[2] for page, score, size, truth in scored]
            best = max(best, (float(np.mean(f1)), switch, bias))
    return best[1], best[2], best[0]


def prepared(pages: list[Labelled], seed: int) -> list[tuple[Array, Array, Array]]:
    """Rows to fit on: the pages (Chinese ones, being few, four times), and half as many made up from them."""
    rng = random.Random(seed)
    rows = []
    for page, truth, _, chinese in pages:
        rows += [(features(page), truth, units(page))] * (4 if chinese else 1)
    balanced = [entry for entry in pages for _ in range(6 if entry[3] else 1)]
    for page, truth, _ in wrapped(balanced, len(pages) // 2, rng):
        rows.append((features(page), truth, units(page)))
    return rows


def wrapped(pages: list[Labelled], count: int, rng: random.Random) -> Iterator[tuple[Page, Array, str]]:
    """(page, labels, true article) of pages made up from others."""
    for _ in range(count):
        markup, article = made_up(pages, rng)
        page = parse(markup)
        if len(page):
            yield page, labels(page, article), article


def main(source: Path, target: Path) -> None:
    """Fits, chooses the cost of a span by two-fold cross-validation inside the fitted half, and writes the weights."""
    real: list[Labelled] = []
    for row in pq.read_table(source).to_pylist():
        if fitted_on(row["id"]):
            page = parse(decode(row["html"])[0])
            if len(page):
                real.append((page, labels(page, row["main_text"]), row["main_text"], row["language"] == "zh"))
    print(f"{len(real)} pages, {sum(entry[3] for entry in real)} of them Chinese")
    scored: Scored = []
    inside: list[tuple[float, float, float]] = []
    for fold in (0, 1):
        weights = ensemble(prepared([entry for index, entry in enumerate(real) if index % 2 != fold], fold), members=2)
        for page, _, truth, _ in real[fold::2]:
            scored.append((page, weights.score(features(page)), units(page), truth))
        for page, _, article in wrapped(
            [entry for entry in real[fold::2] for _ in range(6 if entry[3] else 1)], 60, random.Random(9)
        ):
            kept = spans(weights.score(features(page)), units(page), 4.0)
            inside.append(token_f1(kept_text(page, kept), article))
    switch, bias, f1 = choose_switch(scored)
    print(f"cross-validated: switch {switch}, bias {bias}, F1 {f1:.4f}", flush=True)
    print(f"wrapped: precision, recall, F1 {np.round(np.mean(inside, axis=0), 4)}", flush=True)
    fitted = ensemble(prepared(real, 2), members=6)
    arrays = {
        name: getattr(fitted, name).astype(np.float32)
        for name in ("mean", "scale", "first", "first_bias", "second", "second_bias")
    }
    np.savez(target, names=np.array(NAMES), switch=switch, bias=bias, **arrays)
    print(f"{target}: {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).with_name("weights.npz"))
