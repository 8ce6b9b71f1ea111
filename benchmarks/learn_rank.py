"""One rank of `benchmarks.learn`: the recipe, the training, and which of its states is kept.

Weights are averaged over the last steps (an exponential mean), and twenty times in a run the average is scored on text that was
kept back from the training text. The best one is exported: a corpus of one megaword is gone through many times, and from some
pass on a model learns it by heart.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ninthsky.model import Decoder, Shape
from ninthsky.model.files import save
from ninthsky.train.cut.mesh import Mesh
from ninthsky.train.step.loop import Gate, Recipe, Trainer
from ninthsky.train.step.loss import next_token_loss
from ninthsky.train.text.baseline import model_nats
from ninthsky.train.text.cursor import TokenFile
from ninthsky.train.text.mixture import open_reader

# Chosen on the kept-back text with `--validate` at 100 to 130 CPU-seconds each; see docs/train.md.
SHAPE = Shape(1024, 4, 192, 4, 2, 8, 2, 192, dense_layers=1, dense_dim=512)
RECIPE = Recipe(lr=1e-2, weight_decay=0.3, warmup=0.03, decay=0.4, final=0.02, optimizer="muon", precision="bf16")
SEQUENCE, BATCH, SEED = 256, 16, 7
CHECKS = 20  # in a run
CHECKED = 16_384  # tokens of each language, at most
AVERAGED = 1 / 40  # of the steps: how far back the mean of the weights reaches
WARM_STEPS, TIMED_STEPS = 3, 8


class Average:
    """An exponential mean of everything that is trained here."""

    def __init__(self, trainer: Trainer, steps: int) -> None:
        self.live = [piece.local for piece in trainer.pieces]
        self.biases = [router.e_score_correction_bias for router in trainer.routers.values()]
        self.mean = [weight.clone() for weight in self.live]
        self.reach = max(steps * AVERAGED, 1.0)
        self.best = (math.inf, 0, [weight.clone() for weight in (*self.live, *self.biases)])

    @torch.no_grad()
    def add(self, step: int) -> None:
        torch._foreach_lerp_(self.mean, self.live, max(1 / self.reach, 1 / (step + 1)))

    @torch.no_grad()
    def swap(self) -> None:
        """The mean in place of the live weights, and back."""
        for mean, live in zip(self.mean, self.live, strict=True):
            kept = live.clone()
            live.copy_(mean)
            mean.copy_(kept)

    def keep(self, bits: float, step: int) -> None:
        """To be called while the mean is in place."""
        if bits < self.best[0]:
            self.best = (bits, step, [weight.clone() for weight in (*self.live, *self.biases)])

    @torch.no_grad()
    def take_best(self) -> None:
        """For good."""
        for weight, kept in zip((*self.live, *self.biases), self.best[2], strict=True):
            weight.copy_(kept)


def checked(model: Decoder, file: TokenFile, rank: int, ranks: int) -> dict[str, float]:
    """Bits per byte of the kept-back text by language; ranks share the work (collective)."""
    languages = sorted({part["language"] for part in file.parts})
    sums = torch.zeros(len(languages), 2, dtype=torch.float64)
    for row, language in enumerate(languages):
        parts = [part for part in file.parts if part["language"] == language]
        size, tokens = (sum(part[key] for part in parts) for key in ("bytes", "tokens"))
        part = max(parts, key=lambda part: part["tokens"])
        length = min(part["tokens"], CHECKED)
        first, last = (part["start"] + length * at // ranks for at in (rank, rank + 1))
        nats = model_nats(model, file.tokens[first:last], SEQUENCE)
        sums[row] += torch.tensor([nats.sum(), len(nats) * size / tokens], dtype=torch.float64)
    if ranks > 1:
        dist.all_reduce(sums)
    return {name: float(nats / size / math.log(2)) for name, (nats, size) in zip(languages, sums.tolist(), strict=True)}


def train(rank: int, ranks: int, threads: int, tokens: Path, steps: int, out: Path, say: Any) -> None:
    """One rank; rank 0 sends its figures and writes the export. With `steps` 0 it only measures a step and a check."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    if ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{out}/meeting-{steps}", rank=rank, world_size=ranks)
    mesh = Mesh(dp_replicate=ranks) if ranks > 1 else None
    reader = open_reader(TokenFile.open(tokens, "train"), SEQUENCE, BATCH, SEED)
    kept_back = TokenFile.open(tokens, "held_out")
    total = steps or WARM_STEPS + TIMED_STEPS
    model = Decoder(SHAPE, seed=SEED)
    trainer = Trainer(model, next_token_loss, RECIPE, total, mesh)
    average = Average(trainer, total)
    walls: list[float] = []
    losses: list[float] = []
    checks: list[float] = []
    told: list[dict[str, Any]] = []
    cpu = time.process_time()
    for step in range(total):
        began = time.perf_counter()
        trainer.local_gradients(reader.read(step, rank, ranks))
        losses.append(trainer.apply(Gate.total(trainer.gather(trainer.gate_values()))).loss)
        average.add(step)
        walls.append(time.perf_counter() - began)
        if (step + 1) % max(steps // CHECKS, 1) == 0 if steps else step + 1 == total:
            began = time.perf_counter()
            average.swap()
            bits = checked(model, kept_back, rank, ranks)
            average.keep(statistics.fmean(bits.values()), step + 1)
            average.swap()
            checks.append(time.perf_counter() - began)
            told.append({"step": step + 1, "loss": statistics.fmean(losses[-50:]), "bits": bits})
            if rank == 0 and steps:
                shown = ", ".join(f"{name} {value:.3f}" for name, value in bits.items())
                seconds = sum(walls) + sum(checks)
                print(
                    f"step {step + 1:,} of {steps:,}: loss {told[-1]['loss']:.3f}, kept back {shown}, {seconds:,.0f} s",
                    flush=True,
                )
    used = torch.tensor(time.process_time() - cpu, dtype=torch.float64)
    if ranks > 1:
        dist.all_reduce(used)
    if steps:
        average.take_best()
        whole = trainer.full_model()
        if rank == 0:
            save(whole, out / "export", tokens / "tokenizer.json")
    if rank == 0:
        say.send({"step_seconds": statistics.median(walls[WARM_STEPS:]), "check_seconds": checks[-1],
                  "seconds": sum(walls) + sum(checks), "cpu_seconds": float(used), "passes": reader.passes(average.best[1]),
                  "taken_at": average.best[1], "checks": told})  # fmt: skip
    if ranks > 1:
        dist.destroy_process_group()
