from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from ninthsky.data.tokens import train_tokenizer
from ninthsky.errors import UserError
from ninthsky.model import Decoder, Shape
from ninthsky.model.files import save
from ninthsky.proportion import wilson
from ninthsky.train.cli import app
from ninthsky.train.text.choice import Answered, Question, answer, encoded, marks, read_questions

QUESTIONS = [
    {
        "context": "The ferry crosses the",
        "choices": ["river", "long and winding mountain road", "sea"],
        "answer": 0,
        "group": "en",
    },
    {"context": "Bees keep ", "choices": ["bees", "the garden"], "answer": 1, "group": "en"},
    {"context": "渡船", "choices": ["过河。", "在黎明和黄昏过河"], "answer": 1, "delimiter": "", "group": "zh"},
    {"context": "", "choices": ["a", "b", "c"], "answer": 2},
]


def tokenizer() -> Tokenizer:
    return train_tokenizer(["The ferry crosses the river. Bees keep the garden.", "渡船在黎明和黄昏过河。"] * 4, 280)


def small() -> Decoder:
    return Decoder(Shape(280, 2, 16, 2, 1, 4, 2, 16, dense_dim=32), seed=1)


def by_the_harness(model: Decoder, made: Tokenizer, question: Question) -> list[float]:
    """lm-evaluation-harness 0.4, worked out by hand: `_encode_pair` and `_loglikelihood_tokens`, one text at a time."""
    sums = []
    for choice in question.choices:
        context, continuation = question.context, question.delimiter + choice
        spaces = len(context) - len(context.rstrip())
        if spaces:
            continuation = context[-spaces:] + continuation
            context = context[:-spaces]
        if context == "":
            context_ids, continuation_ids = [1], made.encode(continuation).ids
        else:
            context_ids = made.encode(context).ids
            continuation_ids = made.encode(context + continuation).ids[len(context_ids) :]
        given = torch.tensor([(context_ids + continuation_ids)[:-1]])
        with torch.no_grad():
            shares = torch.log_softmax(model.logits(model(given)), -1)[0, -len(continuation_ids) :]
        sums.append(float(shares[torch.arange(len(continuation_ids)), torch.tensor(continuation_ids)].sum()))
    return sums


def write(path: Path, lines: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8")
    return path


def test_likelihoods_are_the_harness_s(tmp_path: Path) -> None:
    made, model = tokenizer(), small()
    questions = read_questions(write(tmp_path / "q.jsonl", QUESTIONS))
    for one in answer(model, made, questions):
        wanted = by_the_harness(model, made, one.question)
        assert list(one.loglikelihoods) == pytest.approx(wanted, abs=1e-4)
        assert one.picked("acc") == int(np.argmax(wanted))
        characters = np.array([float(len(choice)) for choice in one.question.choices])
        assert one.picked("acc_norm_characters") == int(np.argmax(np.array(wanted) / characters))
    assert model.training
    assert encoded(made, "Bees keep ", " bees")[0] == made.encode("Bees keep").ids


def test_which_choice_is_picked() -> None:
    question = Question(context="", choices=["ab", "中文", "abcdefgh"], answer=1)
    one = Answered(question, (-3.0, -6.5, -9.0))  # over bytes: -1.5, -1.083, -1.125; over characters: -1.5, -3.25, -1.125
    assert [one.picked(measure) for measure in ("acc", "acc_norm", "acc_norm_characters")] == [0, 1, 2]
    assert Answered(question, (-1.0, -1.0, -1.0)).picked("acc") == 0


def test_shares_have_their_intervals_and_groups() -> None:
    def one(group: str, right: bool) -> Answered:
        return Answered(Question(context="", choices=["x", "y"], answer=int(right), group=group), (-2.0, -1.0))

    found = {(m.group, m.measure): m for m in marks([one("en", True), one("en", True), one("zh", False), one("", True)])}
    assert (found["all", "acc"].right, found["all", "acc"].total) == (3, 4)
    assert (found["en", "acc_norm"].right, found["zh", "acc"].right) == (2, 0) and len(found) == 9
    assert found["all", "acc"].interval == wilson(3, 4)


def test_a_long_text_keeps_its_end() -> None:
    made, model = tokenizer(), small()
    question = Question(context="The ferry crosses the river. " * 6, choices=["Bees", "garden"], answer=0)
    before, after = encoded(made, question.context, " Bees")
    (short,) = answer(model, made, [question], longest=10)
    text = torch.tensor([(before + after)[-11:]])
    with torch.no_grad():
        shares = model.logits(model(text[:, :-1])).log_softmax(-1)[0].gather(1, text[0, 1:, None])
    assert short.loglikelihoods[0] == pytest.approx(float(shares[-len(after) :].sum()), abs=1e-4)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("no json", "malformed"),
        ('{"context": "a", "choices": ["b"]}', "missing required field `answer`"),
        ('{"context": "a", "choices": ["b"], "answer": 1}', "answer 1 of 1 choices"),
        ('{"context": "a", "choices": ["b", ""], "answer": 0}', "an empty choice"),
        ('{"context": "a", "choices": ["b"], "answer": 0, "right": 1}', "unknown field `right`"),
    ],
)
def test_a_wrong_line_is_told(tmp_path: Path, line: str, what: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"context": "a", "choices": ["b"], "answer": 0}\n\n' + line)
    with pytest.raises(UserError, match=r"q\.jsonl:3") as told:
        read_questions(path)
    assert told.value.code == "N9-TRN-007" and what in told.value.what
    for text in ("", None):
        empty = tmp_path / f"{text}.jsonl"
        if text is not None:
            empty.write_text(text)
        with pytest.raises(UserError, match="N9-TRN-007"):
            read_questions(empty)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tokenizer()
    made.save(str(tmp_path / "tokenizer.json"))
    save(small(), tmp_path / "export", tmp_path / "tokenizer.json")
    file = write(tmp_path / "q.jsonl", QUESTIONS)
    words = ["score", str(file), "--export", str(tmp_path / "export")]
    assert app([*words, "--json"], exit_on_error=False, result_action="return_value") == 0
    told = json.loads(capsys.readouterr().out)["marks"]
    assert [(m["group"], m["measure"]) for m in told][:4] == [
        ("all", "acc"), ("all", "acc_norm"), ("all", "acc_norm_characters"), ("en", "acc"),
    ]  # fmt: skip
    assert all(m["low"] <= m["share"] <= m["high"] for m in told)
    app(words, exit_on_error=False, result_action="return_value")
    assert f"{told[0]['share']:.4f}" in capsys.readouterr().out
    (tmp_path / "export" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="N9-SRV-001"):
        app(words, exit_on_error=False, result_action="return_value")
