"""The formula for activations against what the real decoder saves for backward, tensor by tensor."""

from __future__ import annotations

import pytest
import torch

from ninthsky.layout.cut import Cut, Cuts
from ninthsky.layout.memory import memory
from ninthsky.layout.shape import Sizes, Work
from ninthsky.model import Decoder, Shape
from ninthsky.train.loss import next_token_loss

BASE = dict(
    layers=4,
    dim=96,
    heads=4,
    kv_heads=2,
    experts=8,
    experts_per_token=2,
    expert_dim=80,
    shared_experts=1,
    dense_layers=1,
    dense_dim=256,
)


def saved_bytes(model: Decoder, tokens: torch.Tensor) -> int:
    """Storages that one forward keeps, each once, without the weights themselves."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss, _ = next_token_loss(model, tokens)
    assert loss.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"qk_norm": False},
        {"kv_heads": 4, "shared_experts": 0},
        {"experts_per_token": 4, "expert_dim": 32},
        {"dense_layers": 4},
        {"dense_layers": 0, "shared_experts": 2},
    ],
    ids=str,
)
def test_activations_are_what_the_decoder_saves(change: dict[str, int]) -> None:
    rows, sequence = 2, 128
    shape = {**BASE, **change}
    sizes = Sizes(vocab=400, head_dim=24, **shape)  # type: ignore[arg-type]
    model = Decoder(Shape(vocab=400, **shape), seed=0).train()  # type: ignore[arg-type]
    counted = saved_bytes(model, torch.randint(0, 400, (rows, sequence + 1), generator=torch.Generator().manual_seed(0)))
    predicted = memory(Cuts.of(Cut(micro_batch=rows)), sizes, Work(sequence, rows, compute_bytes=4))
    # Of the logits one fp32 copy, the log-softmax, is kept over the whole backward.
    kept = predicted["activations"][0] + predicted["logits"][0] - 4 * rows * sequence * 400
    assert kept == pytest.approx(counted, rel=0.03)
