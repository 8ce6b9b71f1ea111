"""`python -m benchmarks.corrupt`: numbers that are silently wrong, put there on purpose: which are found, when, at what cost.

bits: one bit of one element of one rank's own gradient, 0 to 31, each at random steps, ranks and elements, after its backward
has put it down: seen by the gate's checks of that very step, with the digest of what was put down and without it (finite and
range alone: what a flip within the backward itself would meet). Four ranks' samples, in one process.
cost: processor time of the checks beside that of a step, per rank, at a size that is not the tests'.
Real ranks under the guard whose bits are flipped and whose products are wrong are in benchmarks/repeats.py.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.guard import made_tokens
from benchmarks.report import publish
from ninthsky.config.load import parse_settings
from ninthsky.model.decoder import Decoder
from ninthsky.model.shape import Shape
from ninthsky.train.cut.parallel import Own
from ninthsky.train.inject import Fault, flip_bit
from ninthsky.train.rank.integrity import FAR, outstanding
from ninthsky.train.state.digest import Resting, digest, on_device
from ninthsky.train.step.loss import next_token_loss
from ninthsky.train.step.produced import Produced, word_sum
from ninthsky.train.step.ranges import LEAST, Ranges
from ninthsky.train.step.recipe import Recipe
from ninthsky.train.step.trainer import Gate, Trainer
from ninthsky.train.text.cursor import TokenFile
from ninthsky.train.text.mixture import open_reader

RANKS = 4
BITS = range(32)


def sized(folder: Path, size: str) -> tuple[Shape, int, int]:
    """(shape, sequence, batch) of a size, and tokens in `folder`."""
    settings = parse_settings(f'size = "{size}"', "benchmark")
    vocab, train = settings.data.vocab, settings.train
    assert vocab is not None and train.sequence is not None and train.batch is not None
    if not folder.exists():
        made_tokens(folder, vocab)
    return Shape.of(settings.model, vocab), train.sequence, train.batch


# -- bits ---------------------------------------------------------------------------------------------------------------


class Fleet:
    """Four ranks' gradients by one process: each takes its share, the sum is applied. `struck` is the next pass's flip."""

    def __init__(self, folder: Path, size: str, seed: int, steps: int) -> None:
        shape, sequence, batch = sized(folder, size)
        self.reader = open_reader(TokenFile.open(folder, "train"), sequence, batch, seed, {})
        self.trainer = Trainer(Decoder(shape, seed=seed), next_token_loss, Recipe(), steps)
        self.ranges = [Ranges() for _ in range(RANKS)]
        self.rank, self.struck = 0, None  # type: int, Fault | None
        self.trainer.before_reduce.append(self._strike)
        self.produced = Produced()
        self.trainer.own_gradients.append(self.produced.see)
        self.trainer.own_gradients.append(lambda own: self.ranges[self.rank].see(own))

    def look(self, rank: int) -> tuple[Gate, float]:
        """One rank's pass, on top of what gradients hold already. -> (gate, excess)"""
        self.rank = rank
        self.ranges[rank].begin()
        self.produced.begin()
        self.trainer.local_gradients(self.reader.read(self.trainer.step, rank, RANKS))
        return self.trainer.gate_values(), self.ranges[rank].excess().log2

    def alone(self, rank: int, fault: Fault | None) -> tuple[bool, float]:
        """(finite, excess) of a rank's own gradient, with a bit flipped or not; nothing is kept."""
        self.struck = fault
        gate, excess = self.look(rank)
        self.trainer.drop_gradients()
        return gate.finite, excess

    def step(self) -> list[float]:
        """A quiet step of all ranks; their excesses."""
        rows = []
        for rank in range(RANKS):  # seen alone first: the sum that is applied has all of them in it
            rows.append(self.alone(rank, None)[1])
            self.ranges[rank].keep()
        gates = []
        for rank in range(RANKS):
            self.rank = rank
            self.trainer.local_gradients(self.reader.read(self.trainer.step, rank, RANKS))
            gates.append(self.trainer.gate_values())
            self.ranges[rank].begin()
        total = Gate.total(gates)
        self.trainer.apply(Gate(total.finite, gates[-1].square_norm, total.loss, total.count, total.own_norm))
        return rows

    def _strike(self, gradients: Sequence[torch.Tensor]) -> None:
        if self.struck is not None:
            flip_bit(gradients, self.struck)
            self.struck = None


def bits(folder: Path, size: str, seed: int, steps: int, each: int) -> dict[str, Any]:
    """How often a flipped bit of a gradient is found in its step, by bit; and false alarms over the quiet ones."""
    draw, fleet = random.Random(seed), Fleet(folder, size, seed, steps)
    found: Counter[int] = Counter()
    in_range: Counter[int] = Counter()
    tried: Counter[int] = Counter()
    alarms, highest = 0, 0.0
    plan = [bit for bit in BITS for _ in range(each)]
    draw.shuffle(plan)
    at_once = math.ceil(len(plan) / (steps - LEAST))
    while fleet.trainer.step < steps:
        rows = fleet.step()
        alarms += bool(outstanding(rows)) + bool(fleet.produced.changed())
        highest = max(highest, *(min(own, own - sorted(rows)[RANKS // 2]) for own in rows))
        if fleet.trainer.step <= LEAST:
            continue
        usual = [fleet.alone(rank, None)[1] for rank in range(RANKS)]
        for bit in [plan.pop() for _ in range(min(at_once, len(plan)))]:
            rank = draw.randrange(RANKS)
            finite, excess = fleet.alone(rank, Fault(draw.randrange(1 << 30), "flip_gradient", rank, 0, bit=bit))
            row = [excess if other == rank else value for other, value in enumerate(usual)]
            tried[bit] += 1
            seen = not finite or outstanding(row) == (rank,)
            in_range[bit] += seen
            found[bit] += seen or bool(fleet.produced.changed())
    return {
        "by_bit": {bit: [found[bit], in_range[bit], tried[bit]] for bit in BITS},
        "quiet_steps": steps,
        "false_alarms": alarms,
        "highest_quiet_log2": round(highest, 2),
        "far_log2": FAR,
    }


# -- cost ---------------------------------------------------------------------------------------------------------------


def timed(work: Callable[[], object], times: int) -> float:
    """Processor seconds of the quickest."""
    best = math.inf
    for _ in range(times):
        begin = time.process_time()
        work()
        best = min(best, time.process_time() - begin)
    return best


def cost(folder: Path, size: str) -> dict[str, float]:
    """Of one rank that holds the whole state: the checks of a step as shares of it; digests in GB/s."""
    shape, sequence, batch = sized(folder, size)
    trainer = Trainer(Decoder(shape, seed=1), next_token_loss, Recipe(), 1000)
    tokens = open_reader(TokenFile.open(folder, "train"), sequence, batch, 1, {}).read(0, 0, RANKS)
    ranges, resting, produced = Ranges(), Resting(), Produced()
    state = {name: tensor for name, tensor in trainer.state_shard().items() if name != "step"}

    def work() -> None:
        trainer.local_gradients(tokens)
        trainer.drop_gradients()

    def step() -> None:
        trainer.local_gradients(tokens)
        trainer.apply(Gate.total([trainer.gate_values()]))

    def rest() -> None:
        resting.take(state)
        resting.differing(state)

    whole = timed(step, 6)
    trainer.local_gradients(tokens)
    held = [(piece, grad) for piece in trainer.pieces if (grad := piece.gradient()) is not None]
    own = [Own(piece.name, grad, piece.parameter, grad.numel() % 2 == 0) for piece, grad in held]

    def reach() -> None:
        ranges.begin()
        ranges.see(own)
        ranges.excess()
        ranges.keep()

    def put_down() -> None:
        produced.begin()
        for one in own:
            word_sum(one.gradient, one.paired)
        produced.see(own)
        for one in own:
            word_sum(one.gradient, one.paired)

    reached, rested, kept = timed(reach, 6), timed(rest, 6), timed(put_down, 6)
    trainer.drop_gradients()
    flat = torch.randn(1 << 24)
    size_gb = flat.numel() * flat.element_size() / 1e9
    return {
        "step_s": whole,
        "parameters": shape.parameters(),
        "range_share": reached / whole,
        "rest_share": rested / whole,
        "put_down_share": kept / whole,
        "replay_passes_share": timed(work, 6) / whole,
        "digest_gb_s": size_gb / timed(lambda: digest(flat), 5),
        "device_digest_on_cpu_gb_s": size_gb / timed(lambda: on_device(flat), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="bits,cost")
    parser.add_argument("--each", type=int, default=100, help="flips of each bit")
    parser.add_argument("--size", default="tiny", choices=("nano", "tiny"), help="of bits and cost")
    parser.add_argument("--steps", type=int, default=60, help="of bits")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder, parts = Path(tempfile.mkdtemp(prefix="bench-corrupt-")), arguments.parts.split(",")
    figures: dict[str, Any] = {
        "seed": arguments.seed,
        "ranks": RANKS,
        "size": arguments.size,
        "load_before": os.getloadavg()[0],
    }
    rows: list[tuple[Any, ...]] = []
    try:
        if "bits" in parts:
            seen = bits(folder / "tokens", arguments.size, arguments.seed, arguments.steps, arguments.each)
            figures["bits"] = seen
            exponents = ((f"exponent {bit}", [bit]) for bit in range(30, 22, -1))
            for name, chosen in (("sign 31", [31]), *exponents, ("mantissa", range(23))):
                hit, alone, of = (sum(seen["by_bit"][bit][at] for bit in chosen) for at in range(3))
                rows.append((f"gradient, {name}: found in its step", f"{hit} of {of}", f"finite and range alone: {alone}"))
            rows.append(("false alarms of it", f"{seen['false_alarms']} in {seen['quiet_steps']} steps", "-"))
        if "cost" in parts:
            spent = figures["cost"] = cost(folder / "tokens", arguments.size)
            rows.append(("range, of a step", f"{spent['range_share']:.2%}", f"step {spent['step_s'] * 1e3:.0f} ms of one core"))
            rows.append(("sums of gradients put down and reduced, of a step", f"{spent['put_down_share']:.2%}", "-"))
            rows.append(("digests of the whole state, twice, of a step", f"{spent['rest_share']:.2%}", "on one rank; 1/n on n"))
            rows.append(("replay every K steps, of a step", f"{spent['replay_passes_share']:.0%} / K", "default K = 250"))
            rows.append(
                ("digest", f"{spent['digest_gb_s']:.1f} GB/s", f"reduction: {spent['device_digest_on_cpu_gb_s']:.2f} on a CPU")
            )
    finally:
        shutil.rmtree(folder)
    publish("corrupt", rows, figures)


if __name__ == "__main__":
    main()
