"""Applies a mesh to a module: which rank holds which part of each weight, and what moves between ranks in its forward.

Three rules, one for each kind of weight (docs/train.md has the table):

- experts are dealt to ep ranks, then sharded and repeated over the ranks of the stage that hold the same ones;
- matrices of attention, of dense layers and of shared experts are cut over tp, then sharded over dp_shard x cp;
- all others are sharded over dp_shard x cp x tp: positions of a sequence are spread over cp x tp, so each of these ranks has
  gradients of its own, and FSDP2's reduction sums them.

Experts are spread over tp like over any other ranks of the stage, not cut in width: products stay as wide as they are, and each
token goes to its experts from one rank only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from ninthsky.model.attention import Attention
from ninthsky.model.decoder import Decoder
from ninthsky.model.draw import by_expert, draw
from ninthsky.model.experts import Experts, FeedForward
from ninthsky.train.cut.collectives import reduce_scatter
from ninthsky.train.cut.grid import Grid
from ninthsky.train.cut.mesh import Mesh
from ninthsky.train.cut.piece import Piece
from ninthsky.train.cut.sequence import HeadExchange, gather_around

# Weights are gathered and reduced together up to this size: below it a collective costs its latency, not its bytes.
UNIT_BYTES = 32 << 20


class Own(NamedTuple):
    """This rank's own gradient of one weight, where it lies before it is reduced. `parameter` is where autograd put it;
    `paired`: elements 2 n and 2 n + 1 of it are neighbours here too."""

    weight: str
    gradient: Tensor
    parameter: nn.Parameter | None
    paired: bool


# Called with gradients as they lie in memory, and with what tells them by their weights.
Inspect = Callable[[Sequence[Tensor], Callable[[], Sequence[Own]]], None]
Block = Attention | FeedForward  # what tp cuts

SHARDS = ("dp_shard", "cp")  # of a weight that tp cuts
ALL_SHARDS = (*SHARDS, "tp")  # of one that it does not
_ROWS, _COLUMNS = 0, 1
# Dimension along which tp cuts each parameter of a block; those not named are whole on every tp rank.
_TP_CUTS = {
    "q_proj.weight": _ROWS, "k_proj.weight": _ROWS, "v_proj.weight": _ROWS, "o_proj.weight": _COLUMNS,
    "q_proj.bias": _ROWS, "k_proj.bias": _ROWS, "v_proj.bias": _ROWS,
    "gate_up.weight": 1,  # [2, hidden, dim]
    "down.weight": _COLUMNS,
}  # fmt: skip


class _WatchedReduceScatter:
    """FSDP2's reduction of gradients, with a look at this rank's own gradient before it is mixed with the others'.

    The two methods that `FSDPModule.set_custom_reduce_scatter` asks for; torch has no public name for their interface.
    """

    def __init__(self, inspect: Inspect, module: nn.Module) -> None:
        self.inspect, self.module = inspect, module

    def allocate(self, size: Sequence[int | torch.SymInt], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, op: Any, async_op: bool = False
    ) -> dist.Work | None:
        self.inspect([input_tensor], lambda: self._by_weight(input_tensor, group.size()))
        work: dist.Work | None = reduce_scatter(output_tensor, input_tensor, op=op, group=group, async_op=async_op)
        return work

    def _by_weight(self, flat: Tensor, ranks: int) -> Sequence[Own]:
        """Views [ranks, elements of one rank's part, padding included] of what FSDP2 has laid side by side."""
        state: Any = fully_shard.state(self.module)  # type: ignore[attr-defined]
        groups = state._fsdp_param_groups if hasattr(state, "_fsdp_param_groups") else [state._fsdp_param_group]
        weights = [weight for group in groups if group is not None for weight in group.fsdp_params]
        rows, sizes = flat.view(ranks, -1), [weight.padded_sharded_param_size.numel() for weight in weights]
        if sum(sizes) != rows.shape[1]:  # a weight that had no part in the loss
            return [Own("", flat, None, False)]
        names = [str(weight._param_fqn).removeprefix("model.") for weight in weights]
        paired = all(size % 2 == 0 and _keeps_pairs(weight, ranks) for size, weight in zip(sizes, weights, strict=True))
        return [
            Own(name, part, weight._unsharded_param, paired)
            for name, part, weight in zip(names, rows.split(sizes, dim=1), weights, strict=True)
        ]


def apply_mesh(
    root: nn.Module, mesh: Mesh | None, device: torch.device, inspect: Inspect, grid: Grid | None = None
) -> list[Piece]:
    """Cuts `root` (whose forward is the loss, or one stage of it) over the ranks of its pipeline stage, in place.

    Gradients come out summed over all ranks of the stage, never averaged: the caller divides by the global count.
    `inspect` is called with this rank's own gradients before each reduction. A Decoder without memory (`held=False`) gets it
    here: each rank draws its own part alone. Collective; same on every rank of the stage.
    Raises UserError N9-CFG-013 for a mesh that cannot be applied.
    """
    if mesh is None or mesh.ranks == 1:
        whole, cut = _held(root), _Cut(root, None, inspect)
    else:
        for decoder in _all(root, Decoder):
            mesh.check(dist.get_world_size(), decoder.shape)
        whole = _held(root)
        _empty_out(root)
        cut = _Cut(root, grid or Grid(mesh, device), inspect)
        cut.experts()
        cut.tensor()
        cut.sequence()
        cut.shard()
    blank = [name for name, buffer in root.named_buffers() if buffer.is_meta]
    root._apply(lambda tensor: torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device))
    for name in blank:
        root.get_buffer(name).zero_()
    pieces = [cut.piece(name, parameter) for name, parameter in root.named_parameters()]
    _fill(root, pieces, whole)
    return pieces


class _Cut:
    """One module on its way to being cut. Parameters have no memory yet."""

    def __init__(self, root: nn.Module, grid: Grid | None, inspect: Inspect) -> None:
        self.root, self.grid, self.inspect = root, grid, inspect
        self.shapes = {name: tuple(parameter.shape) for name, parameter in root.named_parameters()}
        self.tp_dims: dict[str, int] = {}  # weight -> the dimension that tp cuts
        self.inside: set[str] = set()  # norms of queries and keys, where they are sharded together with weights that tp cuts
        self.blocks = [(name, module) for name, module in root.named_modules() if isinstance(module, Block)]
        self.stacks = [(name, module) for name, module in root.named_modules() if isinstance(module, Experts)]

    def experts(self) -> None:
        """Leaves each rank its own experts, and shards those over the ranks that hold the same."""
        assert self.grid is not None
        ep, group = self.grid.size("ep"), self.grid.group("ep")
        for _, module in self.stacks if ep > 1 else ():
            for part in ("gate_up", "down"):
                shape = getattr(module, part).shape
                setattr(module, part, _empty(shape[0] // ep, *shape[1:]))
            module.group = group
        mesh = self.grid.device_mesh(replicate=("expert_replicate",), shard=("expert_shard",))
        if ep > 1 and self.grid.size("expert_shard") > 1:
            for unit in _units([module for _, module in self.stacks], set()):
                self._fully_shard(unit, mesh, lambda _: Shard(1), set())

    def tensor(self) -> None:
        """Leaves each rank its own heads and widths."""
        assert self.grid is not None
        tp, group = self.grid.size("tp"), self.grid.group("tp")
        if group is None:
            return
        for prefix, block in self.blocks:
            for name, parameter in list(block.named_parameters()):
                dim = _TP_CUTS.get(name)
                if dim is not None:
                    shape = list(parameter.shape)
                    shape[dim] //= tp
                    owner, _, last = name.rpartition(".")
                    setattr(block.get_submodule(owner), last, _empty(*shape))
                    self.tp_dims[f"{prefix}.{name}"] = dim
            if isinstance(block, Attention):
                block.heads, block.kv_heads = block.heads // tp, block.kv_heads // tp
            gather_around(block, group)

    def sequence(self) -> None:
        """Spreads the positions of each sequence."""
        assert self.grid is not None
        place, group = self.grid.place, self.grid.group("cp")
        for decoder in _all(self.root, Decoder):
            decoder.spread = (place.cp * self.grid.mesh.tp + place.tp, self.grid.mesh.sequence_parts)
        for _, block in self.blocks:
            if isinstance(block, Attention) and group is not None:
                block.exchange = HeadExchange(group)

    def shard(self) -> None:
        """FSDP2 over all that is no expert's, from the inside out."""
        assert self.grid is not None
        parameters = dict(self.root.named_parameters())
        others = {parameters[name] for name in parameters if self._spread(name)}
        by_tp = {parameters[name] for name in self.tp_dims}
        few, many = self.grid.size(*SHARDS), self.grid.size(*ALL_SHARDS)
        if many == 1:
            return
        mesh = self.grid.device_mesh(replicate=("dp_replicate",), shard=ALL_SHARDS)
        if by_tp and few > 1:
            self.inside = {f"{prefix}.{name}" for prefix, block in self.blocks for name, _ in block.named_parameters()}
            self.inside -= self.tp_dims.keys()
            within = self.grid.device_mesh(replicate=("dp_replicate",), shard=SHARDS)
            for unit in _units([block for _, block in self.blocks], set()):
                self._fully_shard(unit, within, partial(_shard_dim, parts=few), others)
        elif by_tp:
            others |= by_tp
        for unit in (*_layer_units(self.root, others), [self.root]):
            self._fully_shard(unit, mesh, partial(_shard_dim, parts=many), others)

    def piece(self, name: str, parameter: nn.Parameter) -> Piece:
        """What this rank holds of the weight of that name."""
        held = parameter.detach()
        local = held.to_local() if isinstance(held, DTensor) else held
        shape = self.shapes[name]
        if self.grid is None:
            return Piece(name, parameter, local, shape=shape)
        dims: dict[str, tuple[tuple[str, ...], Placement]]
        fsdp = (
            next((place for place in parameter.placements if place.is_shard()), None)
            if isinstance(parameter, DTensor)
            else None
        )
        if self._spread(name):
            dims = {
                "expert_replicate": (("expert_replicate",), Replicate()),
                "expert_shard": (("expert_shard",), fsdp or Replicate()),
                "ep": (("ep",), Shard(0)),
            }
        elif name in self.tp_dims or name in self.inside:
            # tp before shard: each rank's tp part is what FSDP2 shards.
            dims = {
                "replicate": (("dp_replicate",), Replicate()),
                "tp": (("tp",), Shard(self.tp_dims[name]) if name in self.tp_dims else Replicate()),
                "shard": (SHARDS, fsdp or Replicate()),
            }
        else:
            dims = {"replicate": (("dp_replicate",), Replicate()), "shard": (ALL_SHARDS, fsdp or Replicate())}
        kept = {dim: where for dim, where in dims.items() if self.grid.size(*where[0]) > 1}
        mesh = self.grid.device_mesh(**{dim: axes for dim, (axes, _) in kept.items()})
        axes = tuple(axes for axes, _ in kept.values())
        repeated = self.grid.group(*dims[next(iter(dims))][0]) if fsdp is None else None
        if name in self.inside:  # each tp rank has the gradient of its own heads
            repeated = self.grid.group("tp")
        return Piece(name, parameter, local, mesh, tuple(p for _, p in kept.values()), shape, repeated, self.grid, axes)

    def _spread(self, name: str) -> bool:
        """Whether the weight is dealt out by expert. With ep = 1 experts are weights like any other."""
        return self.grid is not None and self.grid.size("ep") > 1 and name.rpartition(".")[0] in dict(self.stacks)

    def _fully_shard(self, unit: list[nn.Module], mesh: Any, where: Callable[[nn.Parameter], Shard], others: set[Any]) -> None:
        fully_shard(unit, mesh=mesh, reshard_after_forward=False, shard_placement_fn=where, ignored_params=others)
        module = unit[0]
        # Sums without division: gloo has no premultiplied sum, and a divisor of other than 1 divides twice on one rank.
        assert isinstance(module, FSDPModule)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
        watched: Any = _WatchedReduceScatter(self.inspect, module)
        module.set_custom_reduce_scatter(watched)


def _keeps_pairs(weight: Any, ranks: int) -> bool:
    """Whether FSDP2 cuts a weight so that neighbours 2 n and 2 n + 1 stay neighbours."""
    shape, dim = weight._unsharded_param.shape, weight.fsdp_placement.dim
    run = math.prod(shape[dim + 1 :]) * (-(-shape[dim] // ranks))
    return run % 2 == 0 and math.prod(shape) % 2 == 0


def sum_repeated(pieces: Sequence[Piece]) -> None:
    """Sums over ranks the gradients that FSDP2 leaves: one all-reduce for each group (collective)."""
    groups: dict[dist.ProcessGroup, list[Tensor]] = {}
    for piece in pieces:
        gradient = piece.gradient()
        if piece.repeated is not None and gradient is not None:
            groups.setdefault(piece.repeated, []).append(gradient)
    for group, gradients in groups.items():
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat, group=group)
        for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


def _all(root: nn.Module, kind: type[Any]) -> list[Any]:
    return [module for module in root.modules() if isinstance(module, kind)]


def _empty(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, device="meta"))


def _shard_dim(parameter: nn.Parameter, parts: int) -> Shard:
    """Rows, evenly or not. Of stacked matrices the first dimension that comes out even, so that each rank has its share."""
    return Shard(next((dim for dim, size in enumerate(parameter.shape) if size % parts == 0), 0) if parameter.dim() > 2 else 0)


def _units(modules: Sequence[nn.Module], others: set[nn.Parameter]) -> list[list[nn.Module]]:
    """Neighbours together, up to UNIT_BYTES of weights each, `others` and weights already cut left out."""
    units: list[list[nn.Module]] = []
    size = 0
    for module in modules:
        left = [p for p in module.parameters() if not isinstance(p, DTensor) and p not in others]
        own = sum(p.numel() * p.element_size() for p in left)
        if not units or size + own > UNIT_BYTES:
            units.append([])
            size = 0
        units[-1].append(module)
        size += own
    return units


def _layer_units(root: nn.Module, others: set[nn.Parameter]) -> list[list[nn.Module]]:
    """Layers that are gathered on their own; none where the whole model is one small unit."""
    units = _units([layer for decoder in _all(root, Decoder) for layer in decoder.layers], others)
    return units if len(units) > 1 else []


# -- memory -------------------------------------------------------------------------------------------------------------


def _held(root: nn.Module) -> dict[str, Tensor]:
    """Name -> whole weight, of those that have memory."""
    return {name: parameter.data for name, parameter in root.named_parameters() if not parameter.is_meta}


def _empty_out(root: nn.Module) -> None:
    """Leaves every parameter its shape alone. Raises TypeError for one that is used in two places."""
    seen: set[nn.Parameter] = set()
    for module in root.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter in seen:
                raise TypeError(f"{name} of a {type(module).__name__} is used twice: weights that are shared cannot be cut")
            seen.add(parameter)
            setattr(module, name, nn.Parameter(parameter.data.to("meta"), parameter.requires_grad))


@torch.no_grad()
def _fill(root: nn.Module, pieces: Sequence[Piece], whole: dict[str, Tensor]) -> None:
    """Gives each piece its part of the whole weight, or draws it."""
    decoders = {f"{name}." if name else "": module for name, module in root.named_modules() if isinstance(module, Decoder)}
    for piece in pieces:
        if piece.name not in whole:
            prefix = next(prefix for prefix in decoders if piece.name.startswith(prefix))
            _draw_own(piece, piece.name.removeprefix(prefix), decoders[prefix])
        elif piece.grid is not None:
            piece.local.copy_(whole.pop(piece.name)[piece.box()])


def _draw_own(piece: Piece, name: str, decoder: Decoder) -> None:
    """One matrix at a time exists whole: an expert, or a weight that is no expert's."""
    if decoder.seed is None:
        piece.local.zero_()
        return
    box, layers = piece.box(), decoder.shape.layers
    if by_expert(name):
        for row, number in enumerate(range(box[0].start, box[0].stop)):
            expert = torch.empty(1, *piece.shape[1:])
            draw(expert, name, decoder.seed, layers, first=number)
            piece.local[row].copy_(expert[0][box[1:]])
    elif piece.local.numel():
        weight = torch.empty(piece.shape)
        draw(weight, name, decoder.seed, layers)
        piece.local.copy_(weight[box])
