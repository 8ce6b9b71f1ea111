"""The first weights, each from a generator of its own: no order and no cut matters, and a rank can draw its own alone."""

from __future__ import annotations

import math

import torch
import xxhash
from torch import Tensor


@torch.no_grad()
def draw(weight: Tensor, name: str, seed: int, layers: int, first: int = 0) -> None:
    """Fills `weight`, whose `name` is that in the whole Decoder of so many `layers`. The same bits on any machine.

    Normal with variance 1 / fan-in; what writes into the stream smaller by sqrt(2 layers) (Radford et al. 2019). Each
    expert of [experts, in, out] is drawn by its number: `weight` may hold only those from `first` on.
    """
    into_stream = math.sqrt(2 * layers) if name.endswith(("o_proj.weight", "down.weight", "down")) else 1.0
    if weight.dim() == 1:
        weight.fill_(0.0 if name.endswith("bias") else 1.0)  # the others are norms
    elif by_expert(name):
        std = weight.shape[1] ** -0.5 / into_stream
        for number, expert in enumerate(weight, first):
            expert.normal_(0.0, std, generator=_generator(seed, f"{name}.{number}"))
    else:  # [..., out, in]
        fan_in = weight.shape[-1]
        std = {"embedding.weight": 0.1, "head.weight": 1.0 / fan_in}.get(name, fan_in**-0.5 / into_stream)
        weight.normal_(0.0, std, generator=_generator(seed, name))


def by_expert(name: str) -> bool:
    """Whether the weight of this name has an expert in each row."""
    return ".experts." in name


def _generator(seed: int, name: str) -> torch.Generator:
    return torch.Generator().manual_seed(xxhash.xxh3_64_intdigest(f"{seed}/{name}".encode()) >> 1)
