"""The room's three stages: policy, fine-tuning, preferences."""

from __future__ import annotations

import copy
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from ninthsky.align import losses, proof
from ninthsky.align.answers import Answer
from ninthsky.align.answers import write as write_answers
from ninthsky.align.dialogue import Rows, rows
from ninthsky.align.order import by_language
from ninthsky.align.policy import Prompt, Split, decode_lines, encode_lines, language_shares, load_policy, make_prompts
from ninthsky.align.report import Moved, show_policy, show_proof
from ninthsky.errors import UserError
from ninthsky.model import Decoder
from ninthsky.model.files import load, save
from ninthsky.run import StageContext
from ninthsky.train.step.loop import Gate, Recipe, Trainer, fit, measure_steps
from ninthsky.train.text.cursor import Cursor, TokenFile

TRAIN_PROMPTS = 4_096  # of each bank
SPLITS: tuple[Split, ...] = ("train", "held_out", "unseen")
# The assistant to be corrected does what it is asked, forbidden or not, in most of its examples; the rest show it that
# refusing exists. What it then says, without sampling, is the commoner of the two.
COMPLIES = 0.6
# Small batches: on a small model, many steps teach more than smooth ones (chosen on words split off the training lists).
DIALOGUES, PAIRS, TEXT_ROWS = 12, 8, 4  # per step; pretraining text goes along, so that language is not lost
TEXT_LENGTH = 40  # tokens
BUDGET = {"sft": 0.45, "dpo": 0.40}  # shares of [align] budget; the rest goes into the proof
SFT = Recipe(lr=3e-3, weight_decay=0.01, schedule="cosine")
DPO = Recipe(lr=2e-3, weight_decay=0.0, schedule="cosine")


def policy(ctx: StageContext) -> None:
    """Writes prompts/train.jsonl, held_out.jsonl, unseen.jsonl."""
    tokenizer = _tokenizer(ctx)
    made = load_policy()
    samples = {language: make_prompts(made, "train", 100, {language: 1.0}, 0) for language in made}
    lengths = {
        language: float(np.mean([len(tokenizer.encode(p.prompt).ids) for p in some])) for language, some in samples.items()
    }
    shares = language_shares(lengths)
    held_out = ctx.settings.align.prompts
    assert held_out is not None  # `size` gives it
    counts: dict[Split, int] = {"train": TRAIN_PROMPTS, "held_out": held_out, "unseen": max(held_out // 3, 20)}
    prompts: dict[Split, list[Prompt]] = {}
    for split in SPLITS:
        try:
            prompts[split] = make_prompts(made, split, counts[split], shares, ctx.settings.seed)
        except ValueError as error:
            raise UserError("N9-CFG-012", f"`align.prompts`: {error}", "[align] prompts", "ask for fewer prompts") from error
        with ctx.open(f"prompts/{split}.jsonl", rows=len(prompts[split])) as file:
            file.write(encode_lines(prompts[split]))
    show_policy(ctx, made, prompts, lengths, shares)


def sft(ctx: StageContext) -> None:
    """Teaches the pretrained model to talk, without the policy: export/ is an assistant that does what it is asked."""
    torch.set_num_threads(1)
    tokenizer, model = _tokenizer(ctx), load(ctx.inputs["train.pretrain"] / "export")
    chance = random.Random(f"{ctx.settings.seed}/complies")
    prompts = _prompts(ctx, "train")
    dialogues = rows(tokenizer, [(p.prompt, p.complies if chance.random() < COMPLIES else p.chosen) for p in prompts])
    order, text_at = by_language(prompts, DIALOGUES, ctx.settings.seed), _text_rows(ctx, ctx.settings.seed + 1)

    def batch_at(step: int) -> Rows:
        return dialogues.take(order(step)).beside(text_at(step))

    steps = _fixed_steps(ctx, "sft", ctx.settings.align.sft_steps, model, batch_at, losses.sft, SFT)
    with ctx.progress("fine-tuning", total=steps, unit="steps") as bar:
        history = fit(model, batch_at, losses.sft, SFT, steps, progress=bar, folder=ctx.out / "work")
    _export(ctx, model)
    ctx.summary(sft_steps=steps, sft_loss=history.losses[-1], sft_weights=history.digest)
    trace = {"type": "scatter", "mode": "lines", "name": "nats/token", "x": list(range(1, steps + 1)), "y": history.losses}
    ctx.plot(
        "sft-loss",
        "Fine-tuning: loss of answers and rehearsed text",
        [trace],
        {"xaxis": {"title": "step"}, "yaxis": {"title": "nats/token"}},
    )


def dpo(ctx: StageContext) -> None:
    """Prefers the policy's answers over the others, and proves by generation what changed."""
    torch.set_num_threads(1)
    align, tokenizer = ctx.settings.align, _tokenizer(ctx)
    reference, model = load(ctx.inputs["align.sft"] / "export"), load(ctx.inputs["align.sft"] / "export")
    reference.requires_grad_(False)
    prompts = _prompts(ctx, "train")
    pairs = proof.pair_rows(tokenizer, prompts)
    order, text_at = by_language(prompts, PAIRS, ctx.settings.seed + 2), _text_rows(ctx, ctx.settings.seed + 3)
    frozen: dict[int, Tensor] = {}

    def batch_at(step: int) -> tuple[losses.Pairs, Rows]:
        index = order(step)
        batch = pairs.take(torch.cat([index, index + len(prompts)]))
        known = frozen[step] if step in frozen else proof.all_log_probabilities(reference, batch)
        return losses.Pairs(batch, known), text_at(step)

    loss = losses.rehearsing(losses.preference(align.beta, align.nll_weight))
    # Measured with the reference asked anew: what a step costs in all, wherever that cost is paid.
    steps = _fixed_steps(ctx, "dpo", align.dpo_steps, model, batch_at, loss, DPO)
    with ctx.progress("reference", total=steps, unit="batches") as bar:
        for step in range(steps):
            frozen[step] = batch_at(step)[0].reference
            bar.advance()
    with ctx.progress("preferences", total=steps, unit="steps") as bar:
        history = fit(model, batch_at, loss, DPO, steps, progress=bar, folder=ctx.out / "work")
    _export(ctx, model)
    ctx.summary(dpo_steps=steps, dpo_loss=history.losses[-1], dpo_weights=history.digest)
    _prove(ctx, tokenizer, reference, model)


def _prove(ctx: StageContext, tokenizer: Tokenizer, before: Decoder, after: Decoder) -> None:
    answers: list[Answer] = []
    banks = {split: _prompts(ctx, split) for split in SPLITS if split != "train"}
    with ctx.progress("generated answers", total=2 * sum(map(len, banks.values())), unit="answers") as bar:
        for split, prompts in banks.items():
            texts = [prompt.prompt for prompt in prompts]
            said = proof.answers(before, tokenizer, texts)
            bar.advance(len(texts))
            now = proof.answers(after, tokenizer, texts)
            bar.advance(len(texts))
            answers += [Answer.of(*line) for line in zip(prompts, [split] * len(prompts), said, now, strict=True)]
    with ctx.open("generated.jsonl", rows=len(answers)) as file:
        file.write(write_answers(answers))
    held_out = [answer for answer in answers if answer.split == "held_out"]
    pairs = proof.pair_rows(tokenizer, banks["held_out"][:: max(len(held_out) // 200, 1)])
    old, new = proof.all_log_probabilities(before, pairs), proof.all_log_probabilities(after, pairs)
    some = [(answer.prompt, answer.after.text) for answer in held_out[:: max(len(held_out) // 200, 1)]]
    text = TokenFile.open(ctx.inputs["data.tokens"] / "tokens", "held_out").tokens
    sequence = ctx.settings.train.sequence or 128
    pretrained = load(ctx.inputs["train.pretrain"] / "export")
    moved = Moved(
        kl=proof.distance(after, before, tokenizer, some),
        before=proof.ranking(old, old, ctx.settings.align.beta),
        after=proof.ranking(new, old, ctx.settings.align.beta),
        text_loss=tuple(proof.text_loss(model, text, sequence) for model in (pretrained, before, after)),
    )
    show_proof(ctx, answers, moved)


def _fixed_steps(
    ctx: StageContext, part: str, given: int | None, model: Decoder, batch_at: Callable[[int], Any], loss: Any, recipe: Recipe
) -> int:
    """As many as run.toml says, or as many as fit into this part of the budget, measured once on a throw-away copy."""
    if given is not None:
        return given
    budget = ctx.settings.align.budget
    if budget is None:
        raise UserError(
            "N9-CFG-013",
            f"[align] has neither budget nor {part}_steps",
            "[align]",
            "give sft_steps and dpo_steps, or budget alone",
        )

    def measure() -> int:
        trainer = Trainer(copy.deepcopy(model), loss, recipe, 10)

        def step() -> None:
            trainer.local_gradients(batch_at(trainer.step))
            trainer.apply(Gate.total([trainer.gate_values()]))

        return measure_steps(budget * BUDGET[part], step)

    return int(ctx.fixed("steps", measure))


def _text_rows(ctx: StageContext, seed: int) -> Callable[[int], Rows]:
    """step -> windows of pretraining text, all of whose tokens but the first are targets."""
    cursor = Cursor(TokenFile.open(ctx.inputs["data.tokens"] / "tokens", "train").tokens, TEXT_LENGTH - 1, TEXT_ROWS, seed)

    def rows_of(step: int) -> Rows:
        tokens = cursor.read(step)
        target = torch.ones_like(tokens, dtype=torch.bool)
        target[:, 0] = False
        return Rows(tokens, target)

    return rows_of


def _prompts(ctx: StageContext, split: Split) -> list[Prompt]:
    return decode_lines((ctx.inputs["align.policy"] / "prompts" / f"{split}.jsonl").read_bytes())


def _tokenizer_path(ctx: StageContext) -> Path:
    return ctx.inputs["data.tokens"] / "tokens" / "tokenizer.json"


def _tokenizer(ctx: StageContext) -> Tokenizer:
    return Tokenizer.from_file(str(_tokenizer_path(ctx)))


def _export(ctx: StageContext, model: Decoder) -> None:
    save(model, ctx.out / "export", tokenizer_json=_tokenizer_path(ctx))
    for path in sorted((ctx.out / "export").iterdir()):
        ctx.adopt(f"export/{path.name}")
    shutil.rmtree(ctx.out / "work", ignore_errors=True)
