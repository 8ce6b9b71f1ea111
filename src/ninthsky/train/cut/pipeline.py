"""Runs a schedule on one rank: forwards and backwards of its parts, hidden states and their gradients sent and received."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard

from ninthsky.errors import UserError
from ninthsky.model.decoder import Decoder, Leaving
from ninthsky.model.router import Router
from ninthsky.train.cut.schedule import Kind, Message, Schedule, Work
from ninthsky.train.cut.split import Later, backward_to

Loss = Callable[[Any, Any], tuple[Tensor, Tensor | float]]  # (module, batch) -> (sum over this rank's batch, count)


class Root(nn.Module):
    """The loss as a module: whatever it does with the model happens inside one forward, where FSDP2 gathers weights.

    Where the model is a part and not the last, the loss ends where the part does, and the hidden states come out in its place.
    """

    model: nn.Module

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: Any) -> tuple[Tensor, Tensor | float]:
        """(sum, count), or (hidden states, 0)."""
        try:
            return self.loss(self.model, batch)
        except Leaving as end:
            return end.hidden, 0.0


def micro_batches(batch: Any, number: int) -> list[Any]:
    """A batch of tensors (one, or tuples, lists and dicts of them) as `number` batches, cut along the first dimension.

    Raises UserError N9-CFG-013 where there are fewer rows than that.
    """
    if number == 1:
        return [batch]
    if isinstance(batch, Tensor):
        if len(batch) < number:
            raise UserError(
                "N9-CFG-013",
                f"{len(batch)} sequences of one rank cannot make {number} micro-batches",
                "[train] micro_batches",
                "take a larger batch, or fewer micro_batches",
            )
        return [batch[len(batch) * n // number : len(batch) * (n + 1) // number] for n in range(number)]
    if isinstance(batch, dict):
        cut = [micro_batches(value, number) for value in batch.values()]
        return [dict(zip(batch, values, strict=True)) for values in zip(*cut, strict=True)]
    if isinstance(batch, (tuple, list)):
        kind = type(batch)
        parts = zip(*(micro_batches(value, number) for value in batch), strict=True)
        return [kind(*values) if hasattr(kind, "_fields") else kind(values) for values in parts]
    raise TypeError(f"a batch is made of tensors; {type(batch).__name__} cannot be cut into micro-batches")


def sync_gradients(root: nn.Module, last: bool) -> None:
    """Whether the next backward is the last before the optimizer: only then FSDP2 reduces gradients and frees weights."""
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(last, recurse=False)
            module.set_reshard_after_backward(last, recurse=False)
            module.set_is_last_backward(last)


def reduce_gradients(root: nn.Module) -> None:
    """What FSDP2 does after the last backward, where no backward can be told to be the last (collective)."""
    sync_gradients(root, last=True)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            state: Any = fully_shard.state(module)  # type: ignore[attr-defined]
            if state._is_root:
                for inner in state._state_ctx.all_states:
                    groups = inner._fsdp_param_groups if hasattr(inner, "_fsdp_param_groups") else [inner._fsdp_param_group]
                    for group in filter(None, groups):
                        group.post_backward()
                state._root_post_backward_final_callback()


@dataclass
class _Live:
    """One micro-batch in one part, between its forward and the gradients of its weights."""

    entry: Tensor | None  # the hidden states that came in; None where tokens do
    out: Tensor | None = None  # None: to be computed again, with the router choices of `again`
    again: Sequence[AbstractContextManager[None]] = ()
    grad: Tensor | None = None
    later: Later | None = None


class Pipeline:
    """The parts of one rank, `roots` by their numbers, and one schedule. `group` holds the ranks of all stages, in order.

    Each of `moments` is called with the schedule's time before a computation: the same clock on all ranks, by which what
    happened on one can be told to have come before what happened on another.

    With `recompute` a part keeps what came in only, and goes forward again when its backward begins. (Recomputation within
    the layers goes with schedules that do a backward in one piece: in two it would be done for each weight.)
    """

    def __init__(
        self,
        roots: dict[int, Root],
        schedule: Schedule,
        group: dist.ProcessGroup,
        device: torch.device,
        moments: list[Callable[[int], None]],
        recompute: bool = False,
    ) -> None:
        self.roots, self.schedule, self.group, self.device, self.moments = roots, schedule, group, device, moments
        self.recompute = recompute
        self.rank = dist.get_group_rank(group, dist.get_rank())
        self.program = schedule.program(self.rank)

    def run(self, micros: Sequence[Any], autocast: Callable[[], Any]) -> tuple[Tensor, float]:
        """Forward and backward of all micro-batches. -> (sum of losses, sum of counts) of those that end on this rank.

        Gradients are left where autograd or FSDP2 keeps them, summed over micro-batches and not yet over ranks.
        """
        step = _Step(self, micros, autocast)
        for root in self.roots.values():
            sync_gradients(root, last=False)
        for event in self.program:
            if isinstance(event, Message):
                step.send(event) if event.source == self.rank else step.receive(event)
                continue
            self._tell(event.begin)
            step.work(event)
        step.finish()
        self._tell(1 + max(work[-1].end for work in self.schedule.work))
        for root in self.roots.values():
            reduce_gradients(root)
        return step.loss, step.count

    def evaluate(self, batch: Any, autocast: Callable[[], Any]) -> tuple[Tensor, float]:
        """The loss of one batch, part by part, without gradients: (sum, count) where it ends, (0, 0) elsewhere."""
        shape, parts = _stream_shape(next(iter(self.roots.values())), batch), self.schedule.ranks * self.schedule.parts
        loss, count = torch.zeros((), device=self.device), 0.0
        for part, root in self.roots.items():
            if part:
                _decoder(root).arrived = arrived = torch.empty(shape, device=self.device)
                dist.recv(arrived, group=self.group, group_src=self.schedule.rank_of(part - 1))
            with autocast():
                out, counted = root(batch)
            _decoder(root).arrived = None
            if part == parts - 1:
                loss, count = out, float(counted)
            else:
                dist.send(out.contiguous(), group=self.group, group_dst=self.schedule.rank_of(part + 1))
        return loss, count

    def _tell(self, moment: int) -> None:
        for hook in self.moments:
            hook(moment)


class _Step:
    """What is under way while a schedule runs once."""

    def __init__(self, pipeline: Pipeline, micros: Sequence[Any], autocast: Callable[[], Any]) -> None:
        self.pipeline, self.micros, self.autocast = pipeline, micros, autocast
        self.live: dict[tuple[int, int], _Live] = {}
        self.arriving: dict[tuple[Kind, int, int], tuple[Tensor, dist.Work]] = {}
        self.leaving: dict[tuple[Kind, int, int], Tensor] = {}
        self.sent: list[tuple[Tensor, dist.Work]] = []
        self.shapes = [_stream_shape(next(iter(pipeline.roots.values())), micro) for micro in micros]
        self.loss = torch.zeros((), dtype=torch.float32, device=pipeline.device)
        self.count = 0.0

    def send(self, message: Message) -> None:
        tensor = self.leaving.pop((message.kind, message.part, message.micro))
        work = dist.isend(tensor, group=self.pipeline.group, group_dst=message.target)
        assert work is not None
        self.sent.append((tensor, work))  # the tensor lives until it is gone
        while self.sent and self.sent[0][1].is_completed():
            self.sent.pop(0)[1].wait()

    def receive(self, message: Message) -> None:
        tensor = torch.empty(self.shapes[message.micro], device=self.pipeline.device)
        work = dist.irecv(tensor, group=self.pipeline.group, group_src=message.source)
        assert work is not None
        self.arriving[message.kind, message.part, message.micro] = tensor, work

    def work(self, work: Work) -> None:
        {"F": self._forward, "B": self._backward, "W": self._weights}[work.kind](work.part, work.micro)

    def finish(self) -> None:
        for _, work in self.sent:
            work.wait()
        assert not (self.live or self.arriving or self.leaving)

    def _forward(self, part: int, micro: int) -> None:
        live = self.live[part, micro] = _Live(self._arrived("F", part - 1, micro).requires_grad_() if part else None)
        choices: list[tuple[AbstractContextManager[None], AbstractContextManager[None]]] = []
        if self.pipeline.recompute:
            choices = [router.held() for router in self.pipeline.roots[part].modules() if isinstance(router, Router)]
        out, count = self._through(part, micro, live.entry, [first for first, _ in choices])
        if self._last(part):
            self.loss += out.detach()
            self.count += float(count)
        else:
            self._leave("F", part, micro, out.detach())
        if self.pipeline.recompute:
            live.again = [second for _, second in choices]
        else:
            live.out = out

    def _backward(self, part: int, micro: int) -> None:
        live = self.live[part, micro]
        if not self._last(part):
            live.grad = self._arrived("B", part + 1, micro)
        if not self.pipeline.schedule.split:
            self._whole_backward(part, micro, live)
            if live.entry is not None:
                assert live.entry.grad is not None
                self._leave("B", part, micro, live.entry.grad)
            del self.live[part, micro]
        elif live.entry is not None:
            out = self._again(part, micro, live)
            weights = list(self.pipeline.roots[part].parameters())
            grad = torch.ones_like(out) if live.grad is None else live.grad
            into, live.later = backward_to(live.entry, out, grad, weights)
            live.out = live.grad = None
            self._leave("B", part, micro, into)

    def _weights(self, part: int, micro: int) -> None:
        live = self.live.pop((part, micro))
        if live.later is None:
            self._whole_backward(part, micro, live)  # of the part that tokens enter: nothing leaves it backwards
        else:
            live.later()

    def _whole_backward(self, part: int, micro: int, live: _Live) -> None:
        torch.autograd.backward(self._again(part, micro, live), live.grad)

    def _again(self, part: int, micro: int, live: _Live) -> Tensor:
        """What the forward gave, with its graph."""
        return live.out if live.out is not None else self._through(part, micro, live.entry, live.again)[0]

    def _through(
        self, part: int, micro: int, entry: Tensor | None, choices: Sequence[AbstractContextManager[None]]
    ) -> tuple[Tensor, Tensor | float]:
        root = self.pipeline.roots[part]
        decoder = _decoder(root)
        decoder.arrived = entry
        with ExitStack() as within:
            for context in (*choices, self.autocast()):
                within.enter_context(context)
            answer: tuple[Tensor, Tensor | float] = root(self.micros[micro])
        decoder.arrived = None
        return answer

    def _last(self, part: int) -> bool:
        return part == self.pipeline.schedule.ranks * self.pipeline.schedule.parts - 1

    def _leave(self, kind: Kind, part: int, micro: int, tensor: Tensor) -> None:
        self.leaving[kind, part, micro] = tensor.contiguous()

    def _arrived(self, kind: Kind, part: int, micro: int) -> Tensor:
        """What another rank sent."""
        tensor, work = self.arriving.pop((kind, part, micro))
        work.wait()
        return tensor


class _Asked:
    """In the decoder's place: tells the shape of the hidden states that a micro-batch leads to, and computes nothing."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)

    def __call__(self, tokens: Tensor | None = None, *, embeddings: Tensor | None = None, **_: Any) -> Tensor:
        raise Leaving(torch.empty(self._decoder.stream_shape(tokens, embeddings), device="meta"))


def _decoder(root: Root) -> Decoder:
    assert isinstance(root.model, Decoder)
    return root.model


def _stream_shape(root: Root, micro: Any) -> torch.Size:
    try:
        root.loss(_Asked(_decoder(root)), micro)
    except Leaving as asked:
        return asked.hidden.shape
    raise TypeError("with a pipeline, the loss must call the model")
