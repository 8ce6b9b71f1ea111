"""One side of the speed comparison in a process of its own: `python -m benchmarks.sides "mixtral eager compiled"`.

It takes a step for each line `step` that it reads and says its seconds; `Side` is the other end. Processes do not share
allocator, kernel caches or compiled code, so each side is as its user would run it; only one of them works at a time.
Seconds are of processor time on a CPU, of the clock on an accelerator, after it has done all it was asked.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ninthsky.model import Decoder, Shape
from ninthsky.train.peak import matmul_peak
from ninthsky.train.step.device import device, synchronize
from ninthsky.train.step.loop import Gate, Recipe, Trainer
from ninthsky.train.step.loss import next_token_loss

SHAPE = Shape(8192, 6, 384, 6, 6, 8, 2, 512, shared_experts=0, dense_layers=0)
ROWS, LENGTH = 4, 512
KEPT = {"MALLOC_TRIM_THRESHOLD_": "2147483647", "MALLOC_MMAP_THRESHOLD_": "2147483647"}  # what ours asks of glibc itself
Step = Callable[[], object]


def batch(rows: int, length: int, vocab: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(6, vocab, (rows, length + 1), generator=torch.Generator().manual_seed(seed)).to(device())


def ours(compiled: bool) -> Step:
    trainer = Trainer(Decoder(SHAPE), next_token_loss, Recipe(precision="bf16", compile=compiled), steps=1000)
    tokens = batch(ROWS, LENGTH, SHAPE.vocab)

    def step() -> None:
        trainer.local_gradients(tokens)
        trainer.apply(Gate.total([trainer.gate_values()]))

    return step


def hugging_face(name: str, experts: str, compiled: bool) -> Step:
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
    model = transformers.AutoModelForCausalLM.from_config(config).to(device())
    ours_count, theirs = SHAPE.parameters(), sum(p.numel() for p in model.parameters())
    assert abs(ours_count - theirs) < 0.001 * theirs, (name, ours_count, theirs)
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), fused=True)
    tokens = batch(ROWS, LENGTH, SHAPE.vocab)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    model.train()

    def step() -> None:
        with torch.autocast(device().type, torch.bfloat16):
            forward(input_ids=inputs, labels=targets, shift_labels=targets).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def seconds(step: Step) -> float:
    clock = time.process_time if device().type == "cpu" else time.perf_counter
    synchronize(device())
    begin = clock()
    step()
    synchronize(device())
    return clock() - begin


def peak_gib() -> float:
    """The most memory this process held: resident on a CPU (VmHWM, since ru_maxrss of a child begins with its parent's)."""
    if device().type != "cpu":
        return torch.get_device_module(device()).max_memory_allocated() / 2**30
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20


class Side:
    """A variant in its own process: "ninthsky", "ninthsky compiled", or "PEER EXPERTS" with or without " compiled".

    With `kept` its allocator keeps freed memory, as ours makes its own do.
    """

    def __init__(self, name: str, kept: bool = False) -> None:
        command = [sys.executable, "-m", "benchmarks.sides", name]
        environment = {**os.environ, **(KEPT if kept else {})}
        self.name, self.errors = name, tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors, "text": True}
        self.process = subprocess.Popen(command, env=environment, **pipes)

    def ask(self, what: str) -> float:
        """The answer to `step`, `matmul` or `memory`. Raises RuntimeError where the process has ended."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith('{"answer"'):
                return float(json.loads(line)["answer"])
        self.errors.seek(0)
        raise RuntimeError(f"{self.name} ended: {self.errors.read()[-2000:]}")

    def close(self) -> None:
        """Ends the process: it reads no more lines."""
        self.process.communicate()
        self.errors.close()


def main() -> None:
    import transformers  # imported for both sides, so that the start is the same

    assert transformers
    torch.set_num_threads(1)
    before = peak_gib()
    peer, *settings = sys.argv[1].split()
    compiled = "compiled" in settings
    step = ours(compiled) if peer == "ninthsky" else hugging_face(peer, settings[0], compiled)
    answers = {
        "step": lambda: seconds(step),
        "matmul": lambda: matmul_peak(device(), torch.bfloat16),
        "memory": lambda: peak_gib() - before,
    }
    for line in sys.stdin:
        print(json.dumps({"answer": answers[line.strip()]()}), flush=True)


if __name__ == "__main__":
    main()
