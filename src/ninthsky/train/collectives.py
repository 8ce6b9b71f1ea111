"""Two collectives under one name: torch 2.13 renamed them, and warns where the old names are used."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
