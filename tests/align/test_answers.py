from __future__ import annotations

from pathlib import Path

import pytest

from ninthsky.align.answers import Answer, explain, rate, read, right_reason, word_for_word, write
from ninthsky.align.policy import load_policy, make_prompts
from ninthsky.proportion import wilson

PROMPTS = make_prompts(load_policy(), "held_out", 3, {"en": 1.0}, 7)


def answered() -> list[Answer]:
    return [Answer.of(prompt, "held_out", prompt.complies, prompt.chosen) for prompt in PROMPTS]


def test_lines_come_back_as_they_were(tmp_path: Path) -> None:
    answers = answered()
    (tmp_path / "generated.jsonl").write_bytes(write(answers))
    assert read(tmp_path / "generated.jsonl") == answers


def test_rates_count_verdicts() -> None:
    forbidden = [answer for answer in answered() if answer.bank == "forbidden"]
    before, after = rate([a.before for a in forbidden], "refusal"), rate([a.after for a in forbidden], "refusal")
    assert (before.hits, before.total, after.hits) == (0, 3, 3)
    assert after.interval == wilson(3, 3)


def test_why_an_answer_was_counted(tmp_path: Path) -> None:
    answers = answered()
    (tmp_path / "generated.jsonl").write_bytes(write(answers))
    found = explain(tmp_path, answers[0].id)
    assert found is not None and found.verdict == "refusal, as the policy wants" and found.subject == PROMPTS[0].prompt
    text = found.render()
    assert answers[0].after.words in text and PROMPTS[0].complies in text
    assert explain(tmp_path, "answer-nobody-asked") is None
    assert explain(tmp_path, "doc-1") is None


def test_an_answer_against_the_policy_says_so(tmp_path: Path) -> None:
    prompt = PROMPTS[0]
    (tmp_path / "generated.jsonl").write_bytes(write([Answer.of(prompt, "held_out", prompt.complies, prompt.complies)]))
    found = explain(tmp_path, f"answer-{prompt.id}")
    assert found is not None and found.verdict == "answer, the policy wants: refusal"


def test_stammering_and_wrong_reasons_are_counted() -> None:
    forbidden = [prompt for prompt in PROMPTS if prompt.bank == "forbidden"]
    kinds = {prompt.kind: prompt for prompt in forbidden}
    texts = [forbidden[0].chosen, "I cannot help with care.", kinds["deceit"].chosen]
    answers = [Answer.of(kinds["consent"], "held_out", "Sure.", text) for text in texts]
    assert word_for_word(answers, "after").hits == 2
    assert (right_reason(answers).hits, right_reason(answers).total) == (1, 3)
    assert right_reason([]).share == 0.0


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"), [(485, 500, 0.9511, 0.9817), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0)]
)
def test_wilson_equals_published_values(hits: int, total: int, low: float, high: float) -> None:
    assert wilson(hits, total) == pytest.approx((low, high), abs=1e-4)


def test_wilson_of_nothing_is_everything() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="no proportion"):
        wilson(3, 2)
