"""A backward in two: at once what leaves towards the part before, later the gradients of weights.

What the second half needs is the gradient at the node where a weight meets the activations, a matrix product mostly; the first
half comes by there and keeps it (the zero-bubble schedule's need: Qi et al. 2023, arXiv 2401.10241). Nothing is computed twice,
and no collective is called in the second half.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

Later = Callable[[], None]


def backward_to(entry: Tensor, out: Tensor, grad: Tensor, weights: Sequence[nn.Parameter]) -> tuple[Tensor, Later]:
    """Gradient of the leaf `entry`, given `grad` of `out`; and what adds the gradients of `weights` to their `.grad`.

    Weights that enter a node written in Python are served at once: such a node computes all its gradients together.
    """
    trained = [weight for weight in weights if weight.requires_grad]
    meetings, early = _meetings(entry, out, trained)
    kept: dict[Node, tuple[Tensor | None, ...]] = {}
    handles = [node.register_prehook(lambda grads, node=node: kept.update({node: grads})) for node in meetings]
    try:
        found = torch.autograd.grad(out, [entry, *early], grad, retain_graph=True, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    _add(early, found[1:])

    def later() -> None:
        for node, group in meetings.items():
            known = [(GradientEdge(node, number), grad) for number, grad in enumerate(kept.get(node, ())) if grad is not None]
            if known:
                edges, grads = zip(*known, strict=True)
                _add(group, torch.autograd.grad(edges, group, grads, allow_unused=True))
        meetings.clear()
        kept.clear()

    return found[0], later


def _meetings(
    entry: Tensor, out: Tensor, weights: Sequence[nn.Parameter]
) -> tuple[dict[Node, list[nn.Parameter]], list[nn.Parameter]]:
    """Node -> the weights that meet the activations there and nowhere else; and the weights that have to be served at once."""
    assert out.grad_fn is not None
    users: dict[Node, list[Node]] = {out.grad_fn: []}
    waiting = [out.grad_fn]
    while waiting:
        node = waiting.pop()
        for used, _ in node.next_functions:
            if used is not None:
                if used not in users:
                    users[used] = []
                    waiting.append(used)
                users[used].append(node)
    path = _above(get_gradient_edge(entry).node, users, set())
    meetings: dict[Node, list[nn.Parameter]] = {}
    early = []
    for weight in weights:
        leaf = get_gradient_edge(weight).node
        if leaf not in users:
            continue  # not used in this forward
        nodes = _above(leaf, users, path) & path
        if len(nodes) == 1 and not isinstance(next(iter(nodes)), BackwardCFunction):
            meetings.setdefault(next(iter(nodes)), []).append(weight)
        else:
            early.append(weight)
    return meetings, early


def _above(start: Node, users: dict[Node, list[Node]], stop: set[Node]) -> set[Node]:
    """`start` and everything computed from it, not going on beyond nodes of `stop`."""
    seen, waiting = {start}, [start]
    while waiting:
        node = waiting.pop()
        if node in stop:
            continue
        for user in users.get(node, ()):
            if user not in seen:
                seen.add(user)
                waiting.append(user)
    return seen


def _add(weights: Sequence[nn.Parameter], grads: Sequence[Tensor | None]) -> None:
    for weight, grad in zip(weights, grads, strict=True):
        if grad is not None:
            # Autograd may hand the same memory to several: what is added to must be our own.
            weight.grad = grad.clone() if weight.grad is None else weight.grad.add_(grad)
