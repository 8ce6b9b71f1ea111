"""`python -m benchmarks.model`: what recomputation saves and costs, and what a mask between documents costs, on one core.

Each variant runs in processes of its own, in turn, so that a peak of memory is its alone and a busy machine disturbs all
alike. Memory is the peak of the process over weights and optimizer: gradients, activations, copies in bf16. Times are CPU
seconds of one thread.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import multiprocessing as mp
import resource
import time
from dataclasses import replace
from typing import Any

import torch

from benchmarks.report import median_interval, publish
from ninthsky.model import Decoder, Shape
from ninthsky.train.step.loop import Gate, Recipe, Trainer
from ninthsky.train.step.loss import document_loss, next_token_loss

SHAPE = Shape(8192, 6, 384, 6, 6, 8, 2, 512, shared_experts=0, dense_layers=0)
ROWS, LENGTH, DOCUMENT = 4, 512, 150  # tokens of a document in the mean
VARIANTS: dict[str, Any] = {
    "as it is": (Recipe(precision="bf16"), next_token_loss),
    "recomputed": (replace(Recipe(precision="bf16"), recompute="layer"), next_token_loss),
    "masked": (Recipe(precision="bf16"), document_loss),
}


def measured(name: str, steps: int, said: Any) -> None:
    """Sends peak bytes over the state, CPU seconds of each step after the first, and the digest of the weights."""
    torch.set_num_threads(1)
    recipe, loss = VARIANTS[name]
    trainer = Trainer(Decoder(SHAPE), loss, recipe, steps=1000)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(6, SHAPE.vocab, (ROWS, LENGTH + 1), generator=generator)
    tokens[torch.rand(tokens.shape, generator=generator) < 1 / DOCUMENT] = 1
    for tensor in trainer.state_shard().values():
        tensor.add_(0)  # zeros have no memory behind them before they are touched
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = []
    for _ in range(steps):
        begin = time.process_time()
        trainer.local_gradients(tokens)
        trainer.apply(Gate.total([trainer.gate_values()]))
        seconds.append(time.process_time() - begin)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    said.send((peak - held, seconds[1:], trainer.digest()))


def main() -> None:
    """Prints the table and the line of figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    asked = parser.parse_args()
    context = mp.get_context("spawn")
    memory: dict[str, list[float]] = {name: [] for name in VARIANTS}
    cpu: dict[str, list[float]] = {name: [] for name in VARIANTS}
    digests: dict[str, set[str]] = {name: set() for name in VARIANTS}
    for _ in range(asked.rounds):
        for name in VARIANTS:
            hear, say = context.Pipe(duplex=False)
            process = context.Process(target=measured, args=(name, asked.steps, say))
            process.start()
            say.close()
            peak, seconds, digest = hear.recv()
            process.join()
            memory[name].append(peak)
            cpu[name].append(min(seconds))
            digests[name].add(digest)
    figures: dict[str, Any] = {"same_weights": digests["as it is"] == digests["recomputed"]}
    for name, key in (("recomputed", "recompute"), ("masked", "document_mask")):
        pairs = list(zip(cpu[name], cpu["as it is"], strict=True))
        figures |= median_interval([one / other for one, other in pairs], f"{key}_cpu")
        held = list(zip(memory[name], memory["as it is"], strict=True))
        figures |= median_interval([one / other for one, other in held], f"{key}_memory")
    rows = [
        (name, f"{min(memory[name]) / 2**20:.0f} MiB", f"{min(cpu[name]):.3f} s", "yes" if len(digests[name]) == 1 else "no")
        for name in VARIANTS
    ]
    publish("model", rows, figures, ("one step", "peak over state", "CPU", "same weights each time"))


if __name__ == "__main__":
    main()
