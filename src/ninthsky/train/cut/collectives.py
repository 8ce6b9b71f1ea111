"""Collectives under one name: torch 2.13 renamed two of them, and warns where the old names are used."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
all_to_all: Any = dist.all_to_all_single


def broadcast_from(holder: int, tensor: Tensor | None, group: dist.ProcessGroup, device: torch.device) -> Tensor:
    """What rank `holder` of the group has, on all of its ranks, of which the others need not know its shape (collective)."""
    said: list[Any] = [None if tensor is None else (tensor.shape, tensor.dtype)]
    dist.broadcast_object_list(said, group=group, group_src=holder)
    shape, dtype = said[0]
    here = torch.empty(shape, dtype=dtype, device=device) if tensor is None else tensor.contiguous()
    dist.broadcast(here, group=group, group_src=holder)
    return here
