"""What is proved on the simulated device: a program of its own, since a process cannot forget such a device. Prints JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ninthsky.model import Decoder
from ninthsky.train.state import checkpoint
from ninthsky.train.step.device import device as default_device
from ninthsky.train.step.recipe import Recipe
from ninthsky.train.step.trainer import Gate, Trainer
from ninthsky.train.vet import detour, simulated
from ninthsky.train.vet.examine import OPERATORS, examine
from ninthsky.train.vet.golden import golden_run
from ninthsky.train.vet.heldback import FAULTS
from ninthsky.train.vet.quick import quick
from tests.train.vet.model_steps import SHAPE, every_kind_of_step, loss

SAMPLE = ("cast-truncates", "matmul-one-element", "weight-stale", "topk-repeats", "empty-expert", "adamw-no-correction",
          "silu-backward", "sums-in-bf16", "index-add-nothing", "softmax-no-maximum")  # fmt: skip


def a_good_device(device: torch.device) -> list[str]:
    found = examine(device, seed=5, times=2, golden=0, size=0)
    return [f"{verdict.name}: {verdict.problem}" for verdict in found.failed]


def found_faults(device: torch.device) -> dict[str, list[str]]:
    """For each planted fault the operators that fail, of those that it is blamed on and of two innocent ones."""
    seen = {}
    for name in SAMPLE:
        asked = [operator for operator in OPERATORS if operator.name in {*FAULTS[name].blamed, "running sum", "roots"}]
        with simulated.planted(FAULTS[name].make()):
            found = examine(device, operators=asked, times=0, golden=0, size=0, collectives=False)
        seen[name] = [verdict.name for verdict in found.failed]
        assert all(verdict.workaround for verdict in found.failed)
    return seen


def trained(device: torch.device) -> dict[str, Any]:
    """The same steps here and there: losses, and where the tensors lie."""
    runs: dict[str, list[float]] = {}
    tokens = torch.randint(0, SHAPE.vocab, (4, 4, 17), generator=torch.Generator().manual_seed(1))
    for on in (torch.device("cpu"), device):
        trainer = Trainer(Decoder(SHAPE), loss, Recipe(), 4, device=on)
        runs[on.type] = []
        for batch in tokens:
            trainer.local_gradients(batch.to(on))
            runs[on.type].append(trainer.apply(Gate.total([trainer.gate_values()])).loss)
    placed = {tensor.device.type for name, tensor in trainer.state_shard().items() if name != "step"}
    return {"losses": runs, "placed": sorted(placed)}


def carried_over(device: torch.device) -> bool:
    """A checkpoint that was written there is read here, to the same digest."""
    folder = Path(sys.argv[1])
    there = Trainer(Decoder(SHAPE, 3), loss, Recipe(), 4, device=device)
    there.step = 1
    checkpoint.save(there, folder)
    here = Trainer(Decoder(SHAPE, 4), loss, Recipe(), 4, device=torch.device("cpu"))
    return checkpoint.restore(here, folder).path is not None and here.digest() == there.digest()


def detoured(device: torch.device) -> dict[str, list[str]]:
    """Top k is wrong, and then it works on the host."""
    asked = [operator for operator in OPERATORS if operator.name in ("top k", "index_add")]
    answers = {}
    with simulated.planted(FAULTS["topk-repeats"].make()):
        for name in ("before", "on host", "after"):
            if name == "on host":
                detour.on_host("topk", "index_add", device=device)
            found = examine(device, operators=asked, times=0, golden=0, size=0, collectives=False)
            answers[name] = [verdict.name for verdict in found.failed]
            if name == "on host":
                detour.back()
    return answers


def golden(device: torch.device) -> dict[str, str]:
    """Problems of the golden run: on the device as it is, and with a fault that no single product shows."""
    sound = next((step.problem for step in golden_run(device, count=4) if step.problem), "")
    with simulated.planted(FAULTS["adamw-no-correction"].make()):
        wrong = next((step.problem for step in golden_run(device, count=4) if step.problem), "")
    return {"sound": sound, "wrong": wrong}


def quickly(device: torch.device) -> dict[str, Any]:
    sound = quick(device, 0.1).line()
    with simulated.planted(FAULTS["matmul-one-element"].make()):
        return {"sound": sound, "wrong": quick(device, 0.1).line(), "host": quick(torch.device("cpu"), 0.1).line()}


def main() -> None:
    torch.set_num_threads(1)
    device = simulated.register()
    every_kind_of_step(device)
    proofs: tuple[Callable[[torch.device], Any], ...] = (
        a_good_device, found_faults, trained, carried_over, detoured, golden, quickly,
    )  # fmt: skip
    answers = {proof.__name__: proof(device) for proof in proofs}
    print(json.dumps(answers | {"default": default_device().type}))


if __name__ == "__main__":
    main()
