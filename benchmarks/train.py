"""`python -m benchmarks.train`: one core's tokens per CPU-second against Hugging Face models of the same shape, in one run.

Variants take turns, step by step, so that a busy machine disturbs all alike; figures are medians of the ratios of a round.
Each side trains: forward, backward, clipping, fused AdamW, bf16 autocast over fp32 weights, on the same made tokens. Of the
peers' settings for experts the fastest counts. Times are CPU seconds of one thread; memory is the peak of a process of its own.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
import math
import multiprocessing as mp
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.report import median_interval, publish
from ninthsky.model import Decoder, Shape
from ninthsky.train.loop import Gate, Recipe, Trainer
from ninthsky.train.loss import next_token_loss
from ninthsky.train.mesh import Mesh

SHAPE = Shape(8192, 6, 384, 6, 6, 8, 2, 512, shared_experts=0, dense_layers=0)
ROWS, LENGTH = 4, 512
CUT = Shape(512, 4, 192, 4, 2, 8, 2, 192, dense_layers=1, dense_dim=512)  # for many ranks on few cores
Step = Callable[[], object]


def batch(rows: int, length: int, vocab: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(6, vocab, (rows, length + 1), generator=torch.Generator().manual_seed(seed))


def ours() -> Step:
    trainer = Trainer(Decoder(SHAPE), next_token_loss, Recipe(precision="bf16"), steps=1000)
    tokens = batch(ROWS, LENGTH, SHAPE.vocab)

    def step() -> None:
        trainer.local_gradients(tokens)
        trainer.apply(Gate.total([trainer.gate_values()]))

    return step


def hugging_face(name: str, experts: str, weights: torch.dtype = torch.float32) -> Step:
    """A training step of the peer; `experts` is transformers' own setting for how experts are multiplied."""
    import transformers

    sizes: dict[str, Any] = {
        "vocab_size": SHAPE.vocab,
        "hidden_size": SHAPE.dim,
        "num_hidden_layers": SHAPE.layers,
        "num_attention_heads": SHAPE.heads,
        "num_key_value_heads": SHAPE.kv_heads,
        "head_dim": SHAPE.head_dim,
        "num_experts_per_tok": SHAPE.experts_per_token,
        "tie_word_embeddings": False,
        "use_cache": False,
        "attn_implementation": "sdpa",
        "experts_implementation": experts,
    }
    if name == "mixtral":
        config = transformers.MixtralConfig(num_local_experts=SHAPE.experts, intermediate_size=SHAPE.expert_dim, **sizes)
    else:
        config = transformers.Qwen3MoeConfig(
            num_experts=SHAPE.experts, moe_intermediate_size=SHAPE.expert_dim, norm_topk_prob=True, **sizes
        )
    model = transformers.AutoModelForCausalLM.from_config(config).to(weights)
    ours_count, theirs = SHAPE.parameters(), sum(p.numel() for p in model.parameters())
    assert abs(ours_count - theirs) < 0.001 * theirs, (name, ours_count, theirs)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), fused=True)
    tokens = batch(ROWS, LENGTH, SHAPE.vocab)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    model.train()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=weights == torch.float32):
            model(input_ids=inputs, labels=targets, shift_labels=targets).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def cpu_seconds(step: Step) -> float:
    begin = time.process_time()
    step()
    return time.process_time() - begin


def matmul_peak() -> float:
    """bf16 operations per CPU-second of one 2048-cubed product, the best of three."""
    a = torch.randn(2048, 2048).bfloat16()
    return max(2 * 2048**3 / cpu_seconds(lambda: torch.mm(a, a)) for _ in range(3))


def speed(rounds: int) -> tuple[dict[str, list[float]], list[float]]:
    """CPU seconds per step of each variant and the matmul peak, round by round."""
    variants = {"ninthsky": ours()}
    for name in ("mixtral", "qwen3moe"):
        for experts in ("eager", "grouped_mm"):
            variants[f"{name} {experts}"] = hugging_face(name, experts)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    peaks = []
    for number in range(-2, rounds):  # two rounds to warm up
        for name, step in variants.items():
            taken = cpu_seconds(step)
            if number >= 0:
                seconds[name].append(taken)
        if number >= 0:
            peaks.append(matmul_peak())
    return seconds, peaks


def peak_memory(name: str) -> float:
    """Peak resident GiB of a process that does three steps, less what it had before the model was built."""
    command = [sys.executable, "-m", "benchmarks.train", "--memory", name]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(json.loads(told.splitlines()[-1])["gib"])


def measure_memory(name: str) -> None:
    import transformers  # imported for both sides, so that the start is the same

    assert transformers
    torch.set_num_threads(1)
    before = peak_resident()
    if name == "ninthsky":
        step = ours()
    else:
        peer, experts = name.split()
        step = hugging_face(peer, experts)
    for _ in range(3):
        step()
    print(json.dumps({"gib": peak_resident() - before}))


def peak_resident() -> float:
    """GiB; Linux's VmHWM, since ru_maxrss of a child begins with its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20


def one_rank(rank: int, world: int, meeting: str, answers: Any) -> None:
    """CPU seconds per token with this many ranks, the batch per rank the same, and the difference to one process under SGD."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    mesh, rows, length = Mesh(dp_shard=world, ep=min(world, 2)), 4, 256

    def trainer(recipe: Recipe, cut: Mesh | None) -> Trainer:
        return Trainer(Decoder(CUT), next_token_loss, recipe, 100, cut)

    def step(trained: Trainer, tokens: torch.Tensor) -> float:
        trained.local_gradients(tokens)
        return trained.apply(Gate.total(trained.gather(trained.gate_values()))).loss

    fast, own = trainer(Recipe(), mesh), batch(rows, length, CUT.vocab, seed=rank)
    seconds = [cpu_seconds(lambda: step(fast, own)) for _ in range(8)][3:]
    sgd = Recipe(lr=1.0, optimizer="sgd", weight_decay=0.0, warmup=0.0, schedule="constant", clip=0.0)
    cut, alone = trainer(sgd, mesh), trainer(sgd, None)
    worst = 0.0
    for number in range(3):
        whole = batch(world, 64, CUT.vocab, seed=number)
        worst = max(worst, abs(step(cut, whole[rank : rank + 1]) - step(alone, whole)))
    state, wanted = cut.whole_state(), alone.whole_state()
    worst = max(worst, *(float((state[name] - wanted[name]).abs().max()) for name in wanted))
    answers.put((statistics.median(seconds) / (rows * length), worst))
    dist.barrier()
    dist.destroy_process_group()


def ranks(world: int) -> tuple[float, float]:
    """(CPU seconds per token, largest difference in loss or any weight) of `world` ranks."""
    context = mp.get_context("spawn")
    answers: Any = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        meeting = str(Path(folder) / "meeting")
        started = [context.Process(target=one_rank, args=(rank, world, meeting, answers)) for rank in range(world)]
        for process in started:
            process.start()
        told = [answers.get(timeout=120) for _ in started]
        for process in started:
            process.join()
    return statistics.mean(seconds for seconds, _ in told), max(worst for _, worst in told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", help="measure this variant's peak memory alone")
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    if options.memory:
        return measure_memory(options.memory)
    torch.set_num_threads(1)
    seconds, peaks = speed(options.rounds)
    tokens, flops = ROWS * LENGTH, SHAPE.flops_per_token(LENGTH)
    best = {
        name: min((v for v in seconds if v.startswith(name)), key=lambda v: statistics.median(seconds[v]))
        for name in ("mixtral", "qwen3moe")
    }
    figures: dict[str, Any] = {}
    for name, variant in best.items():
        ratios = [theirs / own for theirs, own in zip(seconds[variant], seconds["ninthsky"], strict=True)]
        figures |= median_interval(ratios, f"moe_over_hf_{name}")
    shares = [flops * tokens / own / peak for own, peak in zip(seconds["ninthsky"], peaks, strict=True)]
    figures |= median_interval(shares, "mfu_bf16")
    memory = {variant: peak_memory(variant) for variant in ("ninthsky", *best.values())}
    figures["memory_over_hf"] = memory["ninthsky"] / min(memory[variant] for variant in best.values())
    cuts = {world: ranks(world) for world in (1, 2, 4, 8)}
    figures["parity_max"] = max(worst for _, worst in cuts.values())
    figures["cpu_per_token_8_over_1"] = cuts[8][0] / cuts[1][0]
    rows: list[list[Any]] = [
        [
            f"{name}: tokens per CPU-second",
            tokens / statistics.median(taken),
            f"peak memory {memory[name]:.2f} GiB" if name in memory else "",
        ]
        for name, taken in seconds.items()
    ]
    rows += [["bf16 matmul peak, GFLOP per CPU-second", statistics.median(peaks) / 1e9, "2048 x 2048 x 2048, same run"],
             ["MFU of it", figures["mfu_bf16"], f"{flops / 1e6:.0f} MFLOP per token"]]  # fmt: skip
    rows += [[f"{world} ranks: CPU us per token", cut * 1e6, f"x {cut / cuts[1][0]:.2f} of one rank, parity {worst:.1e}"]
             for world, (cut, worst) in cuts.items()]  # fmt: skip
    assert all(math.isfinite(value) for value in figures.values())
    publish("train", rows, figures)


if __name__ == "__main__":
    main()
