"""Applies a mesh to a module: FSDP2 over dense weights, experts dealt to ranks, and what each rank then holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from ninthsky.errors import UserError
from ninthsky.model.decoder import Decoder
from ninthsky.model.experts import Experts
from ninthsky.train.collectives import reduce_scatter
from ninthsky.train.mesh import Mesh

# Dense weights are gathered and reduced together up to this size: below it a collective costs its latency, not its bytes.
UNIT_BYTES = 32 << 20

Inspect = Callable[[Sequence[Tensor]], None]


@dataclass
class Piece:
    """What one rank holds of one weight. `local` shares its storage with the module's parameter."""

    name: str
    parameter: nn.Parameter
    local: Tensor
    mesh: DeviceMesh | None = None  # None: the whole weight
    placements: tuple[Placement, ...] = ()
    shape: tuple[int, ...] = ()  # of the whole weight
    repeated: dist.ProcessGroup | None = None  # ranks over which FSDP2 does not sum the gradient and the trainer has to

    @property
    def replicas(self) -> int:
        """Ranks that hold this very part."""
        count = 1
        for size, placement in zip(self.mesh.shape if self.mesh is not None else (), self.placements, strict=True):
            count *= size if placement.is_replicate() else 1
        return count

    def gradient(self) -> Tensor | None:
        """This rank's part of the gradient, summed over all ranks."""
        grad = self.parameter.grad
        return grad.to_local() if isinstance(grad, DTensor) else grad

    def distributed(self, local: Tensor) -> Tensor:
        """`local`, cut as this weight is, as a tensor that knows its place in the whole (same storage)."""
        if self.mesh is None:
            return local
        stride = torch.empty(self.shape, device="meta").stride()
        return DTensor.from_local(
            local, self.mesh, self.placements, run_check=False, shape=torch.Size(self.shape), stride=stride
        )

    def whole(self) -> Tensor:
        """The whole weight on every rank (collective)."""
        full = self.distributed(self.local)
        return full.full_tensor() if isinstance(full, DTensor) else full


class _WatchedReduceScatter(ReduceScatter):
    """FSDP2's reduction of gradients, with a look at this rank's own gradient before it is mixed with the others'."""

    def __init__(self, inspect: Inspect) -> None:
        self.inspect = inspect

    def allocate(self, size: Sequence[int | torch.SymInt], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, op: Any, async_op: bool = False
    ) -> dist.Work | None:
        self.inspect([input_tensor])
        work: dist.Work | None = reduce_scatter(output_tensor, input_tensor, op=op, group=group, async_op=async_op)
        return work


def apply_mesh(root: nn.Module, mesh: Mesh | None, device: torch.device, inspect: Inspect) -> list[Piece]:
    """Cuts `root` (whose forward is the loss) over the ranks of the default process group, in place.

    Gradients come out summed over all data-parallel ranks, never averaged: the caller divides by the global count.
    `inspect` is called with this rank's own gradients before each reduction. Collective; same on every rank.
    Raises UserError N9-CFG-013 for a mesh that cannot be applied.
    """
    root.to(device)
    if mesh is None or mesh.ranks == 1:
        return [Piece(name, p, p.data, shape=tuple(p.shape)) for name, p in root.named_parameters()]
    experts = [(name, module) for name, module in root.named_modules() if isinstance(module, Experts)]
    for _, module in experts:
        mesh.check(module.experts, dist.get_world_size())
    by_expert = _spread_experts(experts, mesh, device, inspect) if mesh.ep > 1 else {}
    dense = _device_mesh(device, {"replicate": mesh.dp_replicate, "shard": mesh.dp_shard})
    if mesh.dp_shard > 1:
        spread = {piece.parameter for piece in by_expert.values() if not isinstance(piece.parameter, DTensor)}
        for unit in (*_layer_units(root), [root]):
            fully_shard(unit, mesh=dense, reshard_after_forward=False, ignored_params=spread)
            _sum_only(unit[0], inspect)
    pieces = []
    for name, parameter in root.named_parameters():
        if name in by_expert:
            pieces.append(by_expert[name])
        elif isinstance(parameter, DTensor):
            local, places = _local(parameter), tuple(parameter.placements)
            pieces.append(Piece(name, parameter, local, parameter.device_mesh, places, tuple(parameter.shape)))
        else:
            shape, group = tuple(parameter.shape), dense.get_group("replicate")
            pieces.append(Piece(name, parameter, parameter.data, dense, (Replicate(),), shape, group))
    return pieces


def sum_repeated(pieces: Sequence[Piece]) -> None:
    """Sums over ranks the gradients of pieces that are repeated and not sharded: one all-reduce for each group (collective)."""
    groups: dict[dist.ProcessGroup, list[Tensor]] = {}
    for piece in pieces:
        if piece.repeated is not None and piece.parameter.grad is not None:
            groups.setdefault(piece.repeated, []).append(piece.parameter.grad)
    for group, gradients in groups.items():
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat, group=group)
        for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


def _spread_experts(experts: list[tuple[str, Experts]], mesh: Mesh, device: torch.device, inspect: Inspect) -> dict[str, Piece]:
    """Leaves each rank its slice of the experts, and shards that over the ranks that hold the same slice."""
    repeated, sharded, ep = mesh.expert_cut()
    cut = {"expert_replicate": repeated, "expert_shard": sharded, "ep": ep}
    device_mesh = _device_mesh(device, cut)
    place, group = device_mesh.get_local_rank("ep"), device_mesh.get_group("ep")
    shapes = {}
    for name, module in experts:
        own = module.experts // ep
        for part in ("gate_up", "down"):
            whole = getattr(module, part)
            shapes[f"{name}.{part}"] = tuple(whole.shape)
            setattr(module, part, nn.Parameter(whole.data[place * own : (place + 1) * own].clone()))
            if whole.shape[1] % sharded:  # FSDP2 shards a dimension other than the first evenly or not at all
                raise UserError(
                    "N9-CFG-013",
                    f"{sharded} ranks cannot share {part} of width {whole.shape[1]} evenly",
                    "[mesh]",
                    "choose a larger ep, or dp_replicate in place of dp_shard",
                )
        module.group = group
    if sharded > 1:
        names = ("expert_replicate", "expert_shard") if repeated > 1 else ("expert_shard",)
        for unit in _units([module for _, module in experts]):
            fully_shard(unit, mesh=device_mesh[names], reshard_after_forward=False, shard_placement_fn=lambda _: Shard(1))
            _sum_only(unit[0], inspect)
    placements = {"expert_replicate": Replicate(), "expert_shard": Shard(1), "ep": Shard(0)}
    assert device_mesh.mesh_dim_names is not None
    where = tuple(placements[name] for name in device_mesh.mesh_dim_names)
    pieces = {}
    for name, module in experts:
        for part, parameter in module.named_parameters():
            full = f"{name}.{part}"
            alone = device_mesh.get_group("expert_replicate") if repeated > 1 and sharded == 1 else None
            pieces[full] = Piece(full, parameter, _local(parameter), device_mesh, where, shapes[full], alone)
    return pieces


def _local(parameter: nn.Parameter) -> Tensor:
    """The part in this rank's memory, outside of autograd."""
    held = parameter.detach()
    return held.to_local() if isinstance(held, DTensor) else held


def _device_mesh(device: torch.device, cut: dict[str, int]) -> DeviceMesh:
    """A mesh without dimensions of size 1, each of which would cost a process group."""
    kept = {name: size for name, size in cut.items() if size > 1}
    return init_device_mesh(device.type, tuple(kept.values()), mesh_dim_names=tuple(kept))


def _units(modules: Sequence[nn.Module]) -> list[list[nn.Module]]:
    """Neighbours together, up to UNIT_BYTES of weights each."""
    units: list[list[nn.Module]] = []
    size = 0
    for module in modules:
        own = sum(p.numel() * p.element_size() for p in module.parameters())
        if not units or size + own > UNIT_BYTES:
            units.append([])
            size = 0
        units[-1].append(module)
        size += own
    return units


def _layer_units(root: nn.Module) -> list[list[nn.Module]]:
    """Layers that are gathered on their own; none where the whole model is one small unit."""
    layers = [layer for module in root.modules() if isinstance(module, Decoder) for layer in module.layers]
    units = _units(layers)
    return units if len(units) > 1 else []


def _sum_only(module: nn.Module, inspect: Inspect) -> None:
    """Sums without division: gloo has no premultiplied sum, and a divisor of other than 1 divides twice on one rank."""
    assert isinstance(module, FSDPModule)
    module.set_gradient_divide_factor(1.0)
    module.set_force_sum_reduction_for_comms(True)
    module.set_custom_reduce_scatter(_WatchedReduceScatter(inspect))
