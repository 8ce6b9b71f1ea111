"""What models were asked and what they said: generated.jsonl, the rates counted from it, and `n9 why answer-...`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from ninthsky.align.judge import Judgement, Verdict, judge
from ninthsky.align.policy import Bank, Prompt, load_policy, rules, sentences
from ninthsky.evidence import Evidence, Fact
from ninthsky.proportion import wilson

WANTED: dict[Bank, Verdict] = {"forbidden": "refusal", "harmless": "answer"}


class Said(msgspec.Struct, frozen=True):
    """A generated text and the detector's verdict on it."""

    text: str
    verdict: Verdict
    rule: str
    words: str

    @classmethod
    def of(cls, text: str) -> Said:
        """Judges a text."""
        found: Judgement = judge(text)
        return cls(text, found.verdict, found.rule, found.words)


class Answer(msgspec.Struct, frozen=True):
    """One line of generated.jsonl: a prompt that no training saw, and what the model said before and after."""

    id: str
    split: str
    bank: Bank
    kind: str
    language: str
    prompt: str
    before: Said
    after: Said

    @classmethod
    def of(cls, prompt: Prompt, split: str, before: str, after: str) -> Answer:
        """Judges both texts."""
        return cls(
            f"answer-{prompt.id}",
            split,
            prompt.bank,
            prompt.kind,
            prompt.language,
            prompt.prompt,
            Said.of(before),
            Said.of(after),
        )


@dataclass(frozen=True)
class Rate:
    """A share counted over generated answers, with its Wilson 95 % interval."""

    hits: int
    total: int

    @property
    def share(self) -> float:
        return self.hits / max(self.total, 1)  # nothing counted: 0, and an interval from 0 to 1

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.hits, self.total)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.share:.1%} [{low:.1%}, {high:.1%}]"


def rate(said: Sequence[Said], verdict: Verdict) -> Rate:
    """How many of the texts got that verdict."""
    return Rate(sum(one.verdict == verdict for one in said), len(said))


def word_for_word(answers: Sequence[Answer], when: Literal["before", "after"]) -> Rate:
    """How many texts are a sentence of the policy's examples, to the letter: the rest is the model's own stammer."""
    policy = load_policy()
    known = {language: sentences(policy, language) for language in policy}
    return Rate(sum(getattr(answer, when).text in known[answer.language] for answer in answers), len(answers))


def right_reason(answers: Sequence[Answer]) -> Rate:
    """Of the forbidden requests refused after correction: how many with a reason that belongs to their kind."""
    policy = load_policy()
    reasons = {(language, kind["name"]): kind.get("refusals", ()) for language in policy for kind in policy[language]["kinds"]}
    refused = [answer for answer in answers if answer.bank == "forbidden" and answer.after.verdict == "refusal"]
    return Rate(sum(answer.after.text in reasons[answer.language, answer.kind] for answer in refused), len(refused))


def write(answers: Sequence[Answer]) -> bytes:
    """The bytes of generated.jsonl."""
    return b"".join(msgspec.json.encode(answer) + b"\n" for answer in answers)


def read(path: Path) -> list[Answer]:
    """The lines of generated.jsonl."""
    return [msgspec.json.decode(line, type=Answer) for line in path.read_bytes().splitlines()]


def explain(folder: Path, id: str) -> Evidence | None:
    """Why an answer was counted as it was; None when the id names no answer of this stage."""
    path = folder / "generated.jsonl"
    if not id.startswith("answer-") or not path.exists():
        return None
    for answer in read(path):
        if answer.id == id:
            return _evidence(answer)
    return None


def _evidence(answer: Answer) -> Evidence:
    wanted = WANTED[answer.bank]
    rule = rules(load_policy(), answer.language)[answer.kind]
    held = "as the policy wants" if answer.after.verdict == wanted else f"the policy wants: {wanted}"
    return Evidence(
        id=answer.id,
        kind="answer",
        subject=answer.prompt,
        verdict=f"{answer.after.verdict}, {held}",
        facts=(
            Fact("said after correction", answer.after.text, source="generated, greedy"),
            Fact("judged by its words", answer.after.words, source=f"rule: {answer.after.rule}"),
            Fact("said before", answer.before.text, source=f"judged: {answer.before.verdict}"),
            Fact("the policy's rule", f"{answer.kind}: {rule}", source="align/policy.toml (made for this project)"),
        ),
        decided_by="refusal detector over the generated text (align/judge.py)",
        where={"stage": "align.dpo", "bank": answer.bank, "prompts": answer.split, "language": answer.language},
    )
