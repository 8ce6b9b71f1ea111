"""One rank's training step, cut so that a vote of all ranks fits between gradient and optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import xxhash
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ninthsky.model.decoder import Decoder
from ninthsky.model.experts import Router
from ninthsky.train.collectives import all_gather
from ninthsky.train.device import device as default_device
from ninthsky.train.mesh import Mesh
from ninthsky.train.optimizer import LocalOptimizer
from ninthsky.train.parallel import Inspect, apply_mesh, sum_repeated
from ninthsky.train.recipe import Recipe

Loss = Callable[[Any, Any], tuple[Tensor, Tensor | float]]  # (module, batch) -> (sum over this rank's batch, count)


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


class _Loss(nn.Module):
    """The loss as a module: whatever it does with the model happens inside one forward, where FSDP2 gathers weights."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: Any) -> tuple[Tensor, Tensor | float]:
        return self.loss(self.model, batch)


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
    Hooks in `before_reduce` see, and may change, this rank's own gradients before they are mixed with other ranks'.
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
        self.step = 0
        self.before_reduce: list[Inspect] = []
        self._root = _Loss(model, loss)
        self._root.train()
        self.pieces = apply_mesh(self._root, mesh, self.device, self._inspect)
        for piece in self.pieces:
            piece.name = piece.name.removeprefix("model.")
        self.optimizer = LocalOptimizer(self.pieces, recipe)
        self.routers = {name: module for name, module in model.named_modules() if isinstance(module, Router)}
        self._own_square = torch.zeros((), dtype=torch.float64, device=self.device)
        self._loss, self._count = 0.0, 0.0

    @property
    def distributed(self) -> bool:
        """Whether this is one rank of several."""
        return self.mesh is not None and self.mesh.ranks > 1

    # -- one step -------------------------------------------------------------------------------------------------------

    def local_gradients(self, batch: Any) -> tuple[float, float]:
        """Forward and backward of this rank's `batch`; gradients are then summed over ranks. -> (loss sum, count)."""
        self._own_square.zero_()
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16")
        with autocast:
            loss, count = self._root(batch)
        loss.backward()
        own = [piece.parameter.grad for piece in self.pieces if not isinstance(piece.parameter, DTensor)]
        if own:
            self._inspect([grad for grad in own if grad is not None])
            sum_repeated(self.pieces)
        self._loss, self._count = float(loss.detach()), float(count)
        return self._loss, self._count

    def gate_values(self) -> Gate:
        """This rank's part of the vote. No communication."""
        square = 0.0
        gradients = [(piece, piece.gradient()) for piece in self.pieces]
        held = [(piece, grad) for piece, grad in gradients if grad is not None and grad.numel()]
        if held:
            norms = torch.stack(torch._foreach_norm([grad for _, grad in held])).double().square().tolist()
            square = (
                math.fsum(norm / piece.replicas for norm, (piece, _) in zip(norms, held, strict=True))
                if all(map(math.isfinite, norms))
                else math.nan
            )
        own = math.sqrt(value) if (value := float(self._own_square)) >= 0 else math.nan
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
        for router, counts in zip(self.routers.values(), load, strict=True):
            router.balance(counts, self.recipe.balance)
        figures = StepFigures(self.step, total.loss / max(total.count, 1.0), norm, rate, total.count)
        self.step += 1
        return figures

    def drop_gradients(self) -> None:
        """Forgets this step's gradients and router counts, as if `local_gradients` had not been called."""
        self.optimizer.clear()
        self._drop_plain()
        for router in self.routers.values():
            router.load.zero_()

    # -- state ----------------------------------------------------------------------------------------------------------

    def state_shard(self) -> dict[str, Tensor]:
        """All that this rank holds and the next step depends on, as plain tensors that share storage with the live state:
        copy or write them out before the next `apply`. Keys are the same at the same mesh and rank."""
        shard = {f"weight/{piece.name}": piece.local for piece in self.pieces}
        shard |= {name: tensor for name, (_, tensor) in self.optimizer.state().items()}
        shard |= {f"bias/{name}": router.e_score_correction_bias for name, router in self.routers.items()}
        shard["step"] = torch.tensor(self.step, dtype=torch.int64)
        return shard

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
        state = {piece.name: piece.whole() for piece in self.pieces}
        return state | {f"{name}.e_score_correction_bias": r.e_score_correction_bias for name, r in self.routers.items()}

    def digest(self) -> str:
        """xxh3 over all whole weights and router biases in order of name: the same at every mesh (collective)."""
        hasher = xxhash.xxh3_128()
        for name, tensor in sorted(self.whole_state().items()):
            hasher.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            hasher.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return hasher.hexdigest()

    def full_model(self) -> Decoder:
        """An uncut copy of the Decoder, for export (collective). Raises TypeError where the module is more than a Decoder."""
        if not isinstance(self.model, Decoder):
            raise TypeError("full_model is for a bare Decoder; take whole_state")
        copy = Decoder(self.model.shape, seed=None)
        copy.load_state_dict({name: tensor.detach().cpu() for name, tensor in self.whole_state().items()})
        return copy

    # -- within ---------------------------------------------------------------------------------------------------------

    def _inspect(self, gradients: Sequence[Tensor]) -> None:
        for hook in self.before_reduce:
            hook(gradients)
        for norm in torch._foreach_norm(list(gradients)):
            self._own_square += norm.double().square()

    def _global_load(self) -> tuple[Tensor, dist.Work | None]:
        load = torch.stack([router.load for router in self.routers.values()]) if self.routers else torch.zeros(0)
        work = dist.all_reduce(load, async_op=True) if self.distributed and self.routers else None
        return load, work

    def _drop_plain(self) -> None:
        for piece in self.pieces:
            piece.parameter.grad = None
