"""One rank's training step, cut so that a vote of all ranks fits between gradient and optimizer."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import xxhash
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ninthsky.model import formulas
from ninthsky.model.decoder import Decoder, Layer, Part
from ninthsky.model.router import Router
from ninthsky.train.cut.collectives import all_gather, broadcast_from
from ninthsky.train.cut.grid import Grid
from ninthsky.train.cut.mesh import Mesh
from ninthsky.train.cut.parallel import Own, apply_mesh, sum_repeated
from ninthsky.train.cut.piece import Piece, Region
from ninthsky.train.cut.pipeline import Loss, Pipeline, Root, micro_batches, sync_gradients
from ninthsky.train.cut.schedule import Schedule
from ninthsky.train.step.device import device as default_device
from ninthsky.train.step.device import keep_freed_memory
from ninthsky.train.step.optimizer import LocalOptimizer
from ninthsky.train.step.recipe import Recipe

__all__ = ["Gate", "Loss", "StepFigures", "Trainer"]


@dataclass(frozen=True)
class Gate:
    """What ranks tell each other between gradient and optimizer; sums over ranks are the whole job's.

    `finite` and `own_norm` were taken before gradients were mixed with other ranks', so they point at the rank.
    """

    finite: bool
    square_norm: float  # of this rank's share of the summed gradient, each part counted once over all ranks
    loss: float  # sum over this rank's tokens
    count: float  # tokens (or whatever the loss counts)
    own_norm: float  # of this rank's own gradient, divided by nothing

    def values(self) -> list[float]:
        """As numbers for a collective; fp64 carries them exactly."""
        return [float(self.finite), self.square_norm, self.loss, self.count, self.own_norm]

    @classmethod
    def of(cls, values: Sequence[float]) -> Gate:
        """Back from `values`."""
        return cls(bool(values[0]), *map(float, values[1:5]))

    @classmethod
    def total(cls, gates: Sequence[Gate]) -> Gate:
        """Of all ranks, summed in rank order: the same bits on every rank."""
        return cls(
            all(gate.finite for gate in gates),
            math.fsum(gate.square_norm for gate in gates) if all(gate.finite for gate in gates) else math.nan,
            sum(gate.loss for gate in gates),
            sum(gate.count for gate in gates),
            max(gate.own_norm for gate in gates),
        )


@dataclass(frozen=True)
class StepFigures:
    """What a finished step was."""

    step: int
    loss: float  # mean over all ranks' tokens
    norm: float  # of the whole gradient, before clipping
    lr: float
    tokens: float


class Trainer:
    """Model, optimizer and step of one rank. `fit` uses it alone; the elastic rank process between votes.

    `model` is any module whose parameters are trained (a Decoder, or one with more around it); routers are found in it.
    `steps` is the whole run's, for the schedule; `step` is the next one to do. With a `mesh` the default process group
    must be initialised, with as many ranks; construction is then collective. One step is

        trainer.local_gradients(batch)          # collectives of FSDP2 and of experts
        gate = trainer.gate_values()            # no collective
        total = Gate.total(gates of all ranks)  # the caller's vote; `gather` here for who has no other
        figures = trainer.apply(total)          # one small all-reduce: router load

    or, in place of `apply`, `drop_gradients()`: nothing has changed then, and the step can be done again.
    With `recipe.micro_batches` a batch goes through in so many parts, whose gradients are added up. With `mesh.pp` the model,
    a Decoder, is cut into parts, this rank keeps its own, and micro-batches go through them by `mesh.schedule`.
    Hooks in `before_reduce` see, and may change, this rank's own gradients before they are mixed with other ranks'; those in
    `own_gradients` then see them by the names of their weights (order and layout are the same for the same work). Those in
    `moments` are told the pipeline schedule's time before each piece of work, by which stages can be compared.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        recipe: Recipe,
        steps: int,
        mesh: Mesh | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.model, self.recipe, self.steps, self.mesh = model, recipe, steps, mesh
        self.device = device or default_device()
        keep_freed_memory()
        if recipe.compile:
            formulas.check(self.device)
        self.step = 0
        self.before_reduce: list[Callable[[Sequence[Tensor]], None]] = []
        self.own_gradients: list[Callable[[Sequence[Own]], None]] = []
        self.moments: list[Callable[[int], None]] = []
        by_part = mesh is not None and mesh.pp > 1 and mesh.schedule == "zero-bubble"  # the pipeline recomputes then
        for module in model.modules():
            if isinstance(module, Layer):
                module.recompute = recipe.recompute == "layer" and not by_part
            elif isinstance(module, Decoder):
                module.z_loss = recipe.z_loss
        self.grid = Grid(mesh, self.device) if mesh is not None and mesh.ranks > 1 else None
        self.pipeline = self._pipeline(model, loss)
        self._roots = list(self.pipeline.roots.values()) if self.pipeline else [Root(model, loss)]
        if self.pipeline:
            self.model = nn.ModuleList(root.model for root in self._roots)  # what other ranks hold may be let go
        self.pieces: list[Piece] = []
        self.routers: dict[str, Router] = {}
        for root in self._roots:
            root.train()
            for piece in apply_mesh(root, mesh, self.device, self._inspect, self.grid):
                piece.name = piece.name.removeprefix("model.")
                self.pieces.append(piece)
            self.routers |= {name: module for name, module in root.model.named_modules() if isinstance(module, Router)}
        self.optimizer = LocalOptimizer(self.pieces, recipe)
        self._own_square = torch.zeros((), dtype=torch.float64, device=self.device)
        self._loss, self._count = 0.0, 0.0
        self._last_load = torch.zeros(0)

    @property
    def distributed(self) -> bool:
        """Whether this is one rank of several."""
        return self.mesh is not None and self.mesh.ranks > 1

    # -- one step -------------------------------------------------------------------------------------------------------

    def local_gradients(self, batch: Any) -> tuple[float, float]:
        """Forward and backward of this rank's `batch`; gradients are then summed over ranks. -> (loss sum, count).

        With a pipeline every stage gives the same batch, and the ranks of the last one get loss and count.
        """
        self._own_square.zero_()
        micros = micro_batches(batch, self.recipe.micro_batches)
        with formulas.compiled(self.recipe.compile):
            if self.pipeline:
                loss, count = self.pipeline.run(micros, self._autocast)
            else:
                loss, count = self._accumulate(micros)
        own = [
            Own(piece.name, piece.parameter.grad, piece.parameter, piece.parameter.numel() % 2 == 0)
            for piece in self.pieces
            if not isinstance(piece.parameter, DTensor) and piece.parameter.grad is not None
        ]
        if own:
            self._inspect([one.gradient for one in own], lambda: own)
        sum_repeated(self.pieces)
        self._loss, self._count = float(loss), self._counted(count)
        return self._loss, self._count

    def gate_values(self) -> Gate:
        """This rank's part of the vote. No communication."""
        own_square = float(self._own_square)
        square = 0.0 if self.distributed else own_square  # nothing was mixed since
        gradients = [(piece, piece.gradient()) for piece in self.pieces] if self.distributed else []
        held = [(piece, grad) for piece, grad in gradients if grad is not None and grad.numel()]
        if held:
            norms = torch.stack(torch._foreach_norm([grad for _, grad in held])).double().square().tolist()
            square = (
                math.fsum(norm / piece.replicas for norm, (piece, _) in zip(norms, held, strict=True))
                if all(map(math.isfinite, norms))
                else math.nan
            )
        own = math.sqrt(own_square) if own_square >= 0 else math.nan
        return Gate(math.isfinite(own) and math.isfinite(self._loss), square, self._loss, self._count, own)

    def gather(self, gate: Gate) -> list[Gate]:
        """Every rank's gate, in rank order, for callers that have no vote of their own (collective)."""
        if not self.distributed:
            return [gate]
        own = torch.tensor(gate.values(), dtype=torch.float64, device=self.device)
        everyone = torch.empty(dist.get_world_size() * len(own), dtype=torch.float64, device=self.device)
        all_gather(everyone, own)
        return [Gate.of(values) for values in everyone.view(-1, len(own)).tolist()]

    def apply(self, total: Gate) -> StepFigures:
        """Clips, moves weights and router biases, goes on to the next step. `total` is `Gate.total` of all ranks."""
        norm = math.sqrt(total.square_norm) / max(total.count, 1.0)
        rate = self.recipe.rate(self.step, self.steps)
        clip = min(1.0, self.recipe.clip / (norm + 1e-6)) if self.recipe.clip else 1.0
        load, waiting = self._global_load()
        self.optimizer.step(rate, clip / max(total.count, 1.0))
        self._drop_plain()
        if waiting is not None:
            waiting.wait()
        counts = dict(zip(self._router_rows(), load, strict=True))
        for number, router in zip(self._router_numbers(), self.routers.values(), strict=True):
            router.balance(counts[number], self.recipe.balance)
        self._last_load = load
        figures = StepFigures(self.step, total.loss / max(total.count, 1.0), norm, rate, total.count)
        self.step += 1
        return figures

    def drop_gradients(self) -> None:
        """Forgets this step's gradients and router counts, as if `local_gradients` had not been called."""
        self.optimizer.clear()
        self._drop_plain()
        for router in self.routers.values():
            router.load.zero_()

    # -- control --------------------------------------------------------------------------------------------------------

    def retune(self, recipe: Recipe) -> None:
        """Takes another learning rate, clip, weight decay or balance from the next step on; nothing else of it may differ."""
        self.recipe = recipe
        self.optimizer.retune(recipe)

    def load(self) -> list[tuple[int, list[int]]]:
        """(router's number in the whole model, choices per expert over all ranks) of the last applied step."""
        return list(zip(self._router_rows(), self._last_load.tolist(), strict=False))

    @torch.no_grad()
    def lift_expert(self, router: int, expert: int, size: float) -> None:
        """Raises an expert's routing bias against the others', the mean kept. Nothing where that router is another stage's."""
        for number, module in zip(self._router_numbers(), self.routers.values(), strict=True):
            if number == router:
                bias = module.e_score_correction_bias
                bias[expert] += size
                bias -= size / len(bias)

    @torch.no_grad()
    def evaluate(self, batch: Any) -> tuple[float, float]:
        """The loss of `batch` without a gradient (collective): (sum, count) of this rank, which are 0 where it does not end."""
        if self.pipeline:
            loss, count = self.pipeline.evaluate(batch, self._autocast)
        else:
            with self._autocast():
                loss, count = self._roots[0](batch)
        return float(loss), self._counted(float(count))

    def _router_rows(self) -> list[int]:
        """Numbers of all routers, those of other stages too."""
        decoder = self._roots[0].model
        if self.pipeline and isinstance(decoder, Decoder):
            return list(range(decoder.shape.dense_layers, decoder.shape.layers))
        return self._router_numbers()

    def _router_numbers(self) -> list[int]:
        """The layer where the name holds one, so that pipeline stages agree; else the place in the module."""
        found = [re.search(r"layers\.(\d+)\.", name) for name in self.routers]
        numbers = [int(match[1]) if match else -1 for match in found]
        return numbers if len(set(numbers)) == len(numbers) and -1 not in numbers else list(range(len(numbers)))

    # -- state ----------------------------------------------------------------------------------------------------------

    def state_shard(self) -> dict[str, Tensor]:
        """All that this rank holds and the next step depends on, as plain tensors that share storage with the live state:
        copy or write them out before the next `apply`. Keys are the same at the same mesh and rank."""
        shard = {f"weight/{piece.name}": piece.local for piece in self.pieces}
        shard |= {name: tensor for name, (_, tensor) in self.optimizer.state().items()}
        shard |= {f"bias/{name}": router.e_score_correction_bias for name, router in self.routers.items()}
        shard["step"] = torch.tensor(self.step, dtype=torch.int64)
        return shard

    def regions(self) -> dict[str, Region]:
        """Where those tensors of `state_shard` that are parts of a whole lie in it."""
        cut = {f"weight/{piece.name}": piece for piece in self.pieces}
        cut |= {name: piece for name, (piece, tensor) in self.optimizer.state().items() if tensor.dim()}
        return {name: piece.region() for name, piece in cut.items() if piece.mesh is not None}

    @torch.no_grad()
    def load_shard(self, shard: dict[str, Tensor]) -> None:
        """Takes what `state_shard` of the same rank at the same mesh gave. Raises ValueError for any other."""
        own = self.state_shard()
        if own.keys() != shard.keys() or any(own[name].shape != shard[name].shape for name in own):
            differing = sorted(own.keys() ^ shard.keys())[:3] or [n for n in own if own[n].shape != shard[n].shape][:3]
            raise ValueError(f"the shard is of another model, mesh or rank: {differing}")
        for name, tensor in own.items():
            tensor.copy_(shard[name])
        self.step = int(shard["step"])

    def distributed_state(self) -> dict[str, Tensor]:
        """The same as one tree for a checkpoint that any mesh can load: every tensor knows its place in the whole."""
        tree = {f"weight/{piece.name}": piece.distributed(piece.local) for piece in self.pieces}
        for name, (piece, tensor) in self.optimizer.state().items():
            tree[name] = piece.distributed(tensor) if tensor.dim() else tensor
        tree |= {f"bias/{name}": router.e_score_correction_bias for name, router in self.routers.items()}
        tree["step"] = torch.tensor(self.step, dtype=torch.int64)
        return tree

    def whole_state(self) -> dict[str, Tensor]:
        """Name -> whole weight or router bias, on every rank (collective). Names are the uncut module's."""
        return dict(self._whole())

    def digest(self) -> str:
        """xxh3 over all whole weights and router biases in order of name: the same at every mesh (collective)."""
        hasher = xxhash.xxh3_128()
        for name, tensor in self._whole():
            hasher.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            hasher.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return hasher.hexdigest()

    def full_model(self) -> Decoder:
        """An uncut copy of the Decoder, for export (collective). Raises TypeError where the module is more than a Decoder."""
        decoder = self._roots[0].model
        if not isinstance(decoder, Decoder):
            raise TypeError("full_model is for a bare Decoder; take whole_state")
        copy = Decoder(decoder.shape, seed=None)
        copy.load_state_dict({name: tensor.detach().cpu() for name, tensor in self.whole_state().items()})
        return copy

    # -- within ---------------------------------------------------------------------------------------------------------

    def _pipeline(self, model: nn.Module, loss: Loss) -> Pipeline | None:
        """Cuts the model into parts and keeps this rank's."""
        if self.mesh is None or self.grid is None or self.mesh.pp == 1:
            return None
        if not isinstance(model, Decoder):
            raise TypeError(f"a pipeline cuts a Decoder, not a {type(model).__name__} around one")
        schedule = Schedule.of(self.mesh.schedule, self.mesh.pp, self.mesh.parts, self.recipe.micro_batches)
        parts = Part.even(model.shape.layers, self.mesh.pp * self.mesh.parts)
        own = [number for number in range(len(parts)) if schedule.rank_of(number) == self.grid.place.stage]
        group = self.grid.group("pp")
        assert group is not None
        roots = {number: Root(model.cut(parts[number]), loss) for number in own}
        return Pipeline(roots, schedule, group, self.device, self.moments, self.recipe.recompute == "layer" and schedule.split)

    def _counted(self, count: float) -> float:
        """Ranks that share a sequence each have the loss of their positions; one of them tells the sequence's length."""
        return count if self.grid is None or self.grid.place.counts else 0.0

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16")

    def _accumulate(self, micros: Sequence[Any]) -> tuple[Tensor, float]:
        (root,) = self._roots
        total, counted = torch.zeros((), device=self.device), 0.0
        for number, micro in enumerate(micros, 1):
            if len(micros) > 1:
                sync_gradients(root, last=number == len(micros))
            with self._autocast():
                loss, count = root(micro)
            loss.backward()
            total += loss.detach()
            counted += float(count)
        return total, counted

    def _whole(self) -> Iterator[tuple[str, Tensor]]:
        """Every whole weight and router bias in order of name, one after the other (collective)."""
        own: dict[str, Piece | Tensor] = {piece.name: piece for piece in self.pieces}
        own |= {f"{name}.e_score_correction_bias": router.e_score_correction_bias for name, router in self.routers.items()}

        def here(name: str) -> Tensor:
            held = own[name]
            return held.whole() if isinstance(held, Piece) else held

        group = self.grid.group("pp") if self.grid else None
        if group is None:
            yield from ((name, here(name)) for name in sorted(own))
            return
        told: list[list[str]] = [[] for _ in range(group.size())]
        dist.all_gather_object(told, sorted(own), group=group)
        holder = {name: stage for stage, names in enumerate(told) for name in names}
        for name in sorted(holder):
            yield name, broadcast_from(holder[name], here(name) if name in own else None, group, self.device)

    def _inspect(self, gradients: Sequence[Tensor], by_weight: Callable[[], Sequence[Own]]) -> None:
        for hook in self.before_reduce:
            hook(gradients)
        if self.own_gradients:
            own = by_weight()
            for look in self.own_gradients:
                look(own)
        for norm in torch._foreach_norm(list(gradients)):
            self._own_square += norm.double().square()

    def _global_load(self) -> tuple[Tensor, dist.Work | None]:
        """Choices per expert of every router, [routers of all stages, experts], counted over all ranks."""
        rows = self._router_rows()
        if not rows:
            return torch.zeros(0, 0, dtype=torch.int64), None
        own = dict(zip(self._router_numbers(), (router.load for router in self.routers.values()), strict=True))
        if self.pipeline:
            decoder: Any = self._roots[0].model
            nothing = torch.zeros(decoder.shape.experts, dtype=torch.int64, device=self.device)
            own = {number: own.get(number, nothing) for number in rows}
        load = torch.stack([own[number] for number in rows])
        return load, dist.all_reduce(load, async_op=True) if self.distributed else None

    def _drop_plain(self) -> None:
        for piece in self.pieces:
            piece.parameter.grad = None
