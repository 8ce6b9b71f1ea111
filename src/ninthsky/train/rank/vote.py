"""The gate: one small all-gather between gradient and optimizer, after which every rank knows the same of all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from ninthsky.train.control.steering import SIGNALS
from ninthsky.train.rank.integrity import CHECKS
from ninthsky.train.step.trainer import Gate


@dataclass(frozen=True)
class Vote:
    """What every rank knows after the gate of a step."""

    gates: list[Gate]
    bad: list[int]  # ranks that the bad value came from; empty where it arose in the sum
    finite: bool
    held: int  # newest step of which every rank's state is held by another host
    checks: list[list[float]]  # what integrity adds, by rank
    signals: list[list[float]]  # what control adds, by rank


def cast(
    gate: Gate, checks: Sequence[float], signals: Sequence[float], held: int, first_bad: int | None, device: torch.device
) -> Vote:
    """This rank's numbers, and everybody's (collective). The rank whose bad value left it first is where it came from; one that
    never left (`first_bad` None) comes after all."""
    first = math.inf if first_bad is None else float(first_bad)
    mine = [*gate.values(), *checks, *signals, float(held), first]
    own = torch.tensor(mine, dtype=torch.float64, device=device)
    everyone = torch.empty(dist.get_world_size() * len(own), dtype=torch.float64, device=device)
    dist.all_gather_into_tensor(everyone, own)
    rows = everyone.view(-1, len(own)).tolist()
    gates = [Gate.of(row) for row in rows]
    suspects = {rank: row[-1] for rank, row in enumerate(rows) if not gates[rank].finite or row[-1] < math.inf}
    bad = [rank for rank, number in suspects.items() if number == min(suspects.values())]
    total = Gate.total(gates)
    finite = not bad and math.isfinite(total.square_norm) and math.isfinite(total.loss)
    told = [row[-2 - SIGNALS - CHECKS : -2] for row in rows]
    return Vote(
        gates, bad, finite, min(int(row[-2]) for row in rows), [row[:CHECKS] for row in told], [row[CHECKS:] for row in told]
    )
