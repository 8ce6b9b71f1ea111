from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ninthsky.data.encode import EOS
from ninthsky.data.tokens import train_tokenizer
from ninthsky.errors import UserError
from ninthsky.model import Decoder, Shape
from ninthsky.train.text import evaluate as module
from ninthsky.train.text.baseline import model_nats
from ninthsky.train.text.cursor import TokenFile
from ninthsky.train.text.evaluate import KNESER_NEY, Alphabet, counted, evaluate, seen_before
from ninthsky.train.text.ngram import KneserNey
from tests.train.small import model, tokens

TEXTS = {
    ("book", "en"): [
        "The ferry crosses the river at dawn and at dusk.",
        "A ferry needs a river, and a river a ferry — naïvely.",
    ]
    * 8,
    ("book", "zh"): ["渡船在黎明和黄昏过河。", "河上有船,船上有人。"] * 8,
    ("made", "en"): ["Bees keep the garden; the garden keeps bees."] * 6,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = train_tokenizer([text for texts in TEXTS.values() for text in texts], 300)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    splits = {}
    for split, share in (("train", slice(0, -2)), ("held_out", slice(-2, None))):
        ids: list[int] = []
        parts: list[dict[str, Any]] = []
        for (source, language), texts in TEXTS.items():
            own = [[*tokenizer.encode(text, add_special_tokens=False).ids, EOS] for text in texts[share]]
            size = sum(len(text.encode()) for text in texts[share])
            parts.append({"source": source, "language": language, "start": len(ids), "tokens": sum(map(len, own)),
                          "documents": len(own), "bytes": size})  # fmt: skip
            ids += [token for document in own for token in document]
        np.array(ids, dtype="<u2").tofile(tmp_path / f"{split}.bin")
        splits[split] = {"file": f"{split}.bin", "tokens": len(ids), "documents": 2, "parts": parts,
                         "bytes": sum(part["bytes"] for part in parts)}  # fmt: skip
    index = {"format": 1, "dtype": "uint16", "vocab": 300, "eos": EOS, "splits": splits, "bytes_per_token": 1.0}
    (tmp_path / "index.json").write_text(json.dumps(index))
    return tmp_path


def small() -> Decoder:
    return Decoder(Shape(300, 2, 16, 2, 1, 4, 2, 16, dense_dim=32), seed=1)


def test_bits_are_divided_by_the_bytes_of_the_text_itself(folder: Path) -> None:
    found, made = evaluate(small(), folder, sequence=16), small()
    held_out = TokenFile.open(folder, "held_out")
    alphabet = Alphabet.of(folder, 300)
    assert alphabet is not None
    first = int(held_out.tokens[0])  # nothing stands before it, so it is not scored, and its bytes are not counted
    assert [row.name for row in found.rows] == ["all", "en", "zh", "book/en", "book/zh", "made/en"]
    texts = {name: [text for key, held in TEXTS.items() if name in key for text in held[-2:]] for name in ("en", "zh")}
    for row in found.languages:
        lost = (alphabet.bytes[first], alphabet.characters[first]) if row.name == "en" else (0, 0)
        assert row.bytes == sum(len(text.encode()) for text in texts[row.name]) - lost[0]
        assert row.characters == sum(map(len, texts[row.name])) - lost[1]
    nats = {"model": model_nats(made, held_out.tokens, 16)}
    train = TokenFile.open(folder, "train")
    nats[KNESER_NEY] = -np.log(KneserNey.fit(train.tokens, 300).probabilities(held_out.tokens))[1:]
    zh = held_out.parts[1]
    for scorer, values in nats.items():
        own = values[zh["start"] - 1 : zh["start"] + zh["tokens"] - 1].sum()
        assert found.languages[1].bits_per_byte(scorer) == pytest.approx(own / math.log(2) / zh["bytes"])
        assert (
            sum(row.nats[scorer] for row in found.parts) == pytest.approx(values.sum()) == pytest.approx(found.all.nats[scorer])
        )
        assert sum(row.nats[scorer] for row in found.languages) == pytest.approx(values.sum())
    assert found.scorers == ("model", KNESER_NEY, "bigram", "unigram")
    assert found.all.seen == 1.0  # the held-out texts are among the training texts here
    assert json.loads(json.dumps(found.record()))["rows"][2]["bits_per_byte"]["model"] == found.languages[1].bits_per_byte(
        "model"
    )
    assert any(f"{found.languages[1].bits_per_byte('model'):.4f}" in line for line in found.lines())


def test_a_byte_count_that_the_tokens_contradict_is_told(folder: Path) -> None:
    index = json.loads((folder / "index.json").read_text())
    index["splits"]["held_out"]["parts"][2]["bytes"] += 1
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"made/en: its tokens stand for \d+ bytes, the index says"):
        evaluate(small(), folder, sequence=16)
    with pytest.raises(UserError, match="the model knows 97 tokens"):
        evaluate(model(), folder, sequence=16)


def test_a_limit_counts_what_it_scores(folder: Path) -> None:
    whole = evaluate(small(), folder, sequence=16)
    some = evaluate(small(), folder, sequence=16, limit=10)
    assert some.all.tokens == 10 and 0 < some.all.bytes < whole.all.bytes and [row.name for row in some.rows] == ["all", "en"]


def test_without_a_tokenizer_bytes_are_the_average(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    found = evaluate(small(), folder, sequence=16)
    index = json.loads((folder / "index.json").read_text())["splits"]["held_out"]
    assert (
        found.all.bytes == pytest.approx(found.all.tokens * index["bytes"] / index["tokens"]) and found.all.characters is None
    )


def test_a_damaged_tokenizer_is_told(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="tokenizer is damaged"):
        evaluate(small(), folder, sequence=16)


@pytest.mark.parametrize(("sequence", "stride"), [(16, 16), (16, 8), (16, 5), (64, 1), (8, None)])
def test_each_token_is_scored_once_with_the_context_it_is_owed(sequence: int, stride: int | None) -> None:
    made, ids = model(), tokens(75)
    got = model_nats(made, ids, sequence, stride, rows=3)
    step = stride or sequence
    for at in range(74):
        window = max(0, -(-(at + 1 - sequence) // step)) * step  # the first that reaches it
        alone = model_nats(made, ids[window : at + 2], sequence)[-1]
        assert got[at] == pytest.approx(alone, abs=1e-5), at
    assert len(got) == 74 and made.training


def test_text_that_was_seen_before_is_found() -> None:
    rng = np.random.default_rng(0)
    train, fresh = rng.integers(0, 500, 4000), rng.integers(0, 500, 300)
    held_out = np.concatenate([fresh[:100], train[1000:1020], fresh[100:200], train[50:62], fresh[200:]])
    wanted = np.zeros(len(held_out), dtype=bool)
    wanted[100:120] = True  # 12 in a row are not enough
    assert seen_before(train, held_out).tolist() == wanted.tolist()
    assert not seen_before(train[:5], held_out).any()


def test_long_training_text_is_counted_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 100)
    train = TokenFile(np.arange(10_000, dtype=np.uint16), 10_000, 1)
    some = counted(train, 1000).tokens
    assert len(some) == 1000 and some[0] == 0 and some[-1] == 9999 and len(set(some.tolist())) == 1000
    assert counted(train, 10_000) is train
