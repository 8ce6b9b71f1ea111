"""Multiple choice as the lm-evaluation-harness scores it: the answer is the choice that is likeliest after the context.

A file of questions has one JSON object a line: `context` (text), `choices` (texts), `answer` (number of the right one, from 0);
optional: `delimiter` between context and choice (one space by default, as there; "" suits Chinese), `group` (figures are
given for each group as well).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from tokenizers import Tokenizer

from ninthsky.errors import UserError
from ninthsky.model.decoder import Decoder
from ninthsky.proportion import wilson

EOS = 1  # stands before a text without context, as between documents
ROWS = 16  # scored together


class Question(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of the file."""

    context: str
    choices: list[str]
    answer: int
    delimiter: str = " "
    group: str = ""


@dataclass(frozen=True)
class Answered:
    """Log-likelihood, in nats, of each choice."""

    question: Question
    loglikelihoods: tuple[float, ...]

    def picked(self, measure: str) -> int:
        """The first of the best: `acc` by log-likelihood, `acc_norm` over bytes of the choice (the harness's `acc_bytes`),
        `acc_norm_characters` over its characters (the harness's `acc_norm`; equal for ASCII)."""
        if measure == "acc":
            lengths = [1.0] * len(self.question.choices)
        elif measure == "acc_norm":
            lengths = [float(len(choice.encode())) for choice in self.question.choices]
        else:
            lengths = [float(len(choice)) for choice in self.question.choices]
        return int(np.argmax(np.array(self.loglikelihoods) / np.array(lengths)))


MEASURES = ("acc", "acc_norm", "acc_norm_characters")


@dataclass(frozen=True)
class Mark:
    """How many were right, with its 95 % interval (Wilson 1927)."""

    group: str
    measure: str
    right: int
    total: int

    @property
    def interval(self) -> tuple[float, float]:
        """Of the share that is right."""
        return wilson(self.right, self.total)

    def record(self) -> dict[str, Any]:
        """For JSON."""
        low, high = self.interval
        share = self.right / self.total
        return {"group": self.group, "measure": self.measure, "share": share, "low": low, "high": high, "total": self.total}


def read_questions(path: Path) -> list[Question]:
    """Raises UserError N9-TRN-007 with the line at fault."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("N9-TRN-007", f"not readable: {error}", str(path), "n9 train score FILE.jsonl --export DIR") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            question = msgspec.json.decode(line, type=Question)
            if not 0 <= question.answer < len(question.choices):
                raise msgspec.ValidationError(f"answer {question.answer} of {len(question.choices)} choices")
            if not all(question.choices):
                raise msgspec.ValidationError("an empty choice")
        except msgspec.MsgspecError as error:
            wanted = 'a line reads {"context": "...", "choices": ["...", "..."], "answer": 0}'
            raise UserError("N9-TRN-007", str(error), f"{path}:{number}", wanted) from error
        found.append(question)
    if not found:
        raise UserError("N9-TRN-007", "no questions", str(path), "one JSON object a line")
    return found


def open_tokenizer(folder: Path) -> Tokenizer:
    """Of an export folder. Raises UserError N9-SRV-001 where it has none that can be read."""
    try:
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises no narrower class, whatever is wrong with the file
        raise UserError("N9-SRV-001", str(error), str(folder / "tokenizer.json"), "name an export folder of a run") from error


def encoded(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Token ids of context and continuation, cut where the context alone ends when both are encoded as one text.

    White space at the end of the context goes to the continuation, where a tokenizer puts it; a text without context
    follows <eos>.
    """
    stripped = context.rstrip()
    context, continuation = stripped, context[len(stripped) :] + continuation
    if not context:
        return [EOS], _ids(tokenizer, continuation)
    before = _ids(tokenizer, context)
    return before, _ids(tokenizer, context + continuation)[len(before) :]


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


@torch.inference_mode()
def answer(model: Decoder, tokenizer: Tokenizer, questions: Sequence[Question], longest: int | None = None) -> list[Answered]:
    """Every choice of every question. Of a text with more than `longest` tokens the last ones are used."""
    pairs = [encoded(tokenizer, q.context, q.delimiter + choice) for q in questions for choice in q.choices]
    order = sorted(range(len(pairs)), key=lambda at: sum(map(len, pairs[at])))
    device, training = model.embedding.weight.device, model.training
    model.eval()
    found = np.empty(len(pairs))
    for some in (order[at : at + ROWS] for at in range(0, len(order), ROWS)):
        texts = [
            [*before, *after][-(longest or len(before) + len(after)) - 1 :] for before, after in (pairs[at] for at in some)
        ]
        width = max(map(len, texts))
        # What stands behind a text changes nothing before it: the model is causal.
        tokens = torch.tensor([[*text, *[0] * (width - len(text))] for text in texts], device=device)
        shares = model.logits(model(tokens[:, :-1])).log_softmax(-1)
        told = shares.gather(2, tokens[:, 1:, None]).squeeze(2).double().cpu().numpy()
        for at, text, own in zip(some, texts, told, strict=True):
            asked = min(len(pairs[at][1]), len(text) - 1)
            found[at] = own[len(text) - 1 - asked : len(text) - 1].sum()
    model.train(training)
    left = iter(found.tolist())
    return [Answered(question, tuple(next(left) for _ in question.choices)) for question in questions]


def marks(answered: Sequence[Answered]) -> list[Mark]:
    """Of all questions, then of each group."""
    groups = sorted({one.question.group for one in answered} - {""})
    found = []
    for group in ("all", *groups):
        own = [one for one in answered if group in ("all", one.question.group)]
        right = {measure: sum(one.picked(measure) == one.question.answer for one in own) for measure in MEASURES}
        found += [Mark(group, measure, count, len(own)) for measure, count in right.items()]
    return found
