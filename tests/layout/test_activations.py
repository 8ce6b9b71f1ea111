"""The formula for activations against what the real decoder saves for backward, tensor by tensor."""

from __future__ import annotations

import inspect

import pytest
import torch

from ninthsky.config.schema import Train
from ninthsky.layout.cut import Cut, Cuts
from ninthsky.layout.memory import LOGIT_ROWS, QUERY_BLOCK, memory
from ninthsky.layout.shape import Sizes, Work
from ninthsky.model import Decoder, Shape
from ninthsky.model.fused import BLOCKS, output_loss, pays
from ninthsky.train.step.loss import next_token_loss

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
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
@pytest.mark.parametrize(("sequence", "precision"), [(128, "fp32"), (256, "fp32"), (128, "bf16")])
def test_activations_are_what_the_decoder_saves(
    change: dict[str, int], sequence: int, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In bf16 on a CPU an expert's rows are filled up to a multiple of 32: up to 31 rows of each expert that are not modelled.
    monkeypatch.setattr("ninthsky.model.deal.ROUND", 1)
    rows, shape = 2, {**BASE, **change}
    sizes = Sizes(vocab=400, head_dim=24, **shape)  # type: ignore[arg-type]
    model = Decoder(Shape(vocab=400, **shape), seed=0).train()  # type: ignore[arg-type]
    tokens = torch.randint(0, 400, (rows, sequence + 1), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        counted = saved_bytes(model, tokens)
    train = Train(sequence=sequence, batch=rows, precision=precision)
    work = Work.of(train, chip_computes_in=4, on_cpu=True)
    assert work.keeps_scores == pays(torch.empty(1, dtype=getattr(torch, DTYPES[precision]), requires_grad=True), sequence)
    predicted = memory(Cuts.of(Cut(micro_batch=rows)), sizes, work)["activations"][0]
    # Kept besides: the last norm's input, and the gradients of hidden states and head that the loss computes in its forward.
    predicted += 4 * (2 * rows * sequence * sizes.dim + sizes.embedding)
    if precision == "bf16":  # copies of weights, which memory() counts as gathered; norms and router are used in fp32
        in_fp32 = 2 * sizes.embedding + sizes.layers * sizes.norms + sizes.sparse_layers * sizes.router
        predicted += 2 * (sizes.parameters - in_fp32)
    assert predicted == pytest.approx(counted, rel=0.03)


def test_blocks_are_those_of_the_model() -> None:
    assert (BLOCKS[torch.bfloat16], BLOCKS.get(torch.float32, 64)) == (QUERY_BLOCK[2], QUERY_BLOCK[4])


def test_logits_exist_in_chunks_of_the_models_size() -> None:
    assert inspect.signature(output_loss).parameters["rows"].default == LOGIT_ROWS
