"""The stage: the pretrained decoder learns to read signals, beside the same training from scratch and classical rivals."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ninthsky.model import Decoder
from ninthsky.model.files import load
from ninthsky.run import StageContext
from ninthsky.signal import baselines
from ninthsky.signal.patches import Array
from ninthsky.signal.reader import Form, Reader, Reading, answer_loss, question_ids, save_reader, texts
from ninthsky.signal.report import Outcome, show
from ninthsky.signal.tasks import Prepared, prepare, task_named
from ninthsky.train.step.device import device
from ninthsky.train.step.loop import Gate, Recipe, Trainer, fit, measure_steps

BATCH = 24  # signals per step, all of one kind
ARMS = ("checkpoint", "scratch")
BUDGET = 0.8  # of [signal] budget, for the training of both arms; the rest for rivals and answers
RECIPE = Recipe(lr=3e-3, weight_decay=0.01, schedule="cosine")


def run(ctx: StageContext) -> None:
    """Writes results.json, answers.jsonl and reader/."""
    torch.set_num_threads(1)
    tokenizer_json = ctx.inputs["data.tokens"] / "tokens" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(tokenizer_json))
    data = [prepare(task_named(name), ctx.settings.seed) for name in ctx.settings.signal.tasks]
    batch_at = batches(data, tokenizer, ctx.settings.seed)
    pretrained = load(ctx.inputs["train.pretrain"] / "export")
    readers = {
        "checkpoint": make_reader(pretrained, data, ctx.settings.seed),
        "scratch": make_reader(Decoder(pretrained.shape, seed=ctx.settings.seed), data, ctx.settings.seed),
    }
    steps = _fixed_steps(ctx, readers["checkpoint"], batch_at)
    losses: dict[str, list[float]] = {}
    said: dict[str, dict[str, list[str]]] = {task.task.name: {} for task in data}
    for arm in ARMS:
        with ctx.progress(
            f"signals, {'from the checkpoint' if arm == 'checkpoint' else 'from scratch'}", total=steps, unit="steps"
        ) as bar:
            losses[arm] = fit(
                readers[arm], batch_at, answer_loss, RECIPE, steps, progress=bar, folder=ctx.out / f"work-{arm}"
            ).losses
        for task in data:
            said[task.task.name][arm] = read_all(readers[arm], task, tokenizer)
    outcomes = []
    for task in data:
        with ctx.progress(f"rivals on {task.task.title}", unit="models") as bar:
            rivals = baselines.rivals(task, ctx.settings.seed)
            bar.advance(len(rivals))
        outcomes.append(Outcome(task, said[task.task.name], rivals, baselines.control(task, ctx.settings.seed)))
    with ctx.open("answers.jsonl") as file:
        file.write(b"".join(line for outcome in outcomes for line in outcome.lines()))
    with ctx.open("results.json") as file:
        file.write((json.dumps({o.data.task.name: o.figures() for o in outcomes}, indent=1, sort_keys=True) + "\n").encode())
    for path in save_reader(readers["checkpoint"], ctx.out / "reader", tokenizer_json):
        ctx.adopt(f"reader/{path.name}")
    show(ctx, outcomes, losses, steps)
    for arm in ARMS:
        shutil.rmtree(ctx.out / f"work-{arm}", ignore_errors=True)


def make_reader(decoder: Decoder, data: list[Prepared], seed: int) -> Reader:
    """The decoder with an entrance for each task's patches."""
    return Reader(decoder, {task.task.name: Form(task.patches.shape[1], task.patches.shape[2]) for task in data}, seed)


def batches(data: list[Prepared], tokenizer: Tokenizer, seed: int) -> Callable[[int], Reading]:
    """step -> a batch of one task's train rows, tasks in turn; a function of the step alone.

    Complex signals are turned by a random phase each time: a carrier's phase means nothing, and says so in no other way.
    """
    written = [texts(tokenizer, task.task.question, task.answers) for task in data]
    on = device()

    def batch_at(step: int) -> Reading:
        round_, turn = divmod(step, len(data))
        task, (text, target) = data[turn], written[turn]
        rows = _places(task.train, round_, seed)
        patches = task.patches[rows]
        if np.iscomplexobj(task.normalised):
            patches = task.task.patching.cut(task.rows.axes, turned(task.normalised[rows], np.random.default_rng([seed, step])))
        return Reading(task.task.name, torch.from_numpy(patches).to(on), text[rows].to(on), target[rows].to(on))

    return batch_at


def turned(rows: Array, chance: np.random.Generator) -> Array:
    """Complex rows [B, ...], each times a phase of its own."""
    phase = chance.uniform(0, 2 * np.pi, (len(rows),) + (1,) * (rows.ndim - 1))
    return rows * np.exp(1j * phase)


def read_all(reader: Reader, data: Prepared, tokenizer: Tokenizer) -> list[str]:
    """What the reader says about each test row, as text."""
    asked = question_ids(tokenizer, data.task.question)
    longest = max(len(tokenizer.encode(" " + name, add_special_tokens=False).ids) for name in data.rows.classes) + 1
    answers = reader.answer(data.task.name, torch.from_numpy(data.patches[data.test]), asked, longest)
    return [tokenizer.decode(ids, skip_special_tokens=False).strip() for ids in answers]


def _places(train: NDArray[np.int64], round_: int, seed: int) -> NDArray[np.int64]:
    """The train rows of a task's `round_`-th batch: epoch after epoch, each in an order of its own."""
    places = np.arange(round_ * BATCH, (round_ + 1) * BATCH)
    epochs = places // len(train)
    found = np.empty(BATCH, np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        found[here] = np.random.default_rng([seed, int(epoch), len(train)]).permutation(train)[places[here] % len(train)]
    return found


def _fixed_steps(ctx: StageContext, reader: Reader, batch_at: Callable[[int], Any]) -> int:
    """Steps of each arm: run.toml's, or as many as fit into the budget, measured once on a throw-away copy."""
    signal = ctx.settings.signal
    if signal.steps is not None:
        return signal.steps
    assert signal.budget is not None  # `size` gives it where no steps are given
    budget = signal.budget

    def measure() -> int:
        trainer = Trainer(copy.deepcopy(reader), answer_loss, RECIPE, 10)

        def step() -> None:  # one of each task: they differ in length
            for _ in ctx.settings.signal.tasks:
                trainer.local_gradients(batch_at(trainer.step))
                trainer.apply(Gate.total([trainer.gate_values()]))

        return measure_steps(budget * BUDGET / len(ARMS), step, timed=4) * len(ctx.settings.signal.tasks)

    return int(ctx.fixed("steps", measure))
