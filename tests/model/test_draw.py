from __future__ import annotations

import pytest
import torch

from ninthsky.errors import UserError
from ninthsky.model import Decoder, Shape
from ninthsky.model.draw import draw

SHAPE = Shape(97, 2, 32, 4, 2, 4, 2, 24, dense_layers=1, dense_dim=48)


def test_experts_drawn_alone_are_those_of_the_whole_model() -> None:
    whole = dict(Decoder(SHAPE, seed=3).named_parameters())
    for name in ("layers.1.mlp.experts.gate_up", "layers.1.mlp.experts.down"):
        part = torch.empty(2, *whole[name].shape[1:])
        draw(part, name, 3, SHAPE.layers, first=2)
        assert torch.equal(part, whole[name][2:])


def test_spread_of_each_weight() -> None:
    for name, weight in Decoder(SHAPE, seed=3).named_parameters():
        if weight.dim() == 1:
            assert bool((weight == 1).all())
            continue
        fan_in = weight.shape[1 if ".experts." in name else -1]
        wanted = {"embedding.weight": 0.1, "head.weight": 1 / fan_in}.get(name, fan_in**-0.5)
        wanted /= 2 if "o_proj" in name or ".down" in name else 1  # sqrt(2 layers)
        assert float(weight.detach().std()) == pytest.approx(wanted, rel=0.2), name


def test_a_model_that_is_not_held_has_no_memory() -> None:
    model = Decoder(SHAPE, seed=3, held=False)
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


def test_own_positions() -> None:
    model, rows = Decoder(SHAPE, held=False), torch.arange(24).view(2, 12)
    assert model.own(rows) is rows
    model.spread = (1, 3)
    assert model.own(rows).tolist() == [[4, 5, 6, 7], [16, 17, 18, 19]]
    with pytest.raises(UserError, match="cp x tp = 3 does not divide the 11 positions"):
        model.own(rows[:, :11])
