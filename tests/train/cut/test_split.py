from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ninthsky.model.decoder import Decoder, Leaving, Part
from ninthsky.train.cut.pipeline import Loss
from ninthsky.train.cut.split import Later, backward_to
from ninthsky.train.step.loss import document_loss, next_token_loss
from tests.train.small import SHAPE, cursor, model


def test_parts_have_the_whole_s_names_and_weights() -> None:
    whole = dict(model().named_parameters())
    for parts in (1, 2, 3):
        cuts = Part.even(SHAPE.layers, parts)
        assert [part.first for part in cuts[1:]] == [part.last for part in cuts[:-1]]
        for pieces in ([Decoder(SHAPE, 0, part) for part in cuts], [model().cut(part) for part in cuts]):
            names = [name for piece in pieces for name, _ in piece.named_parameters()]
            assert sorted(names) == sorted(whole)
            assert all(torch.equal(weight, whole[name]) for piece in pieces for name, weight in piece.named_parameters())
            assert [piece.part.embeds for piece in pieces] == [True] + [False] * (parts - 1)
            assert [piece.part.heads for piece in pieces] == [False] * (parts - 1) + [True]


@pytest.mark.parametrize("loss", [next_token_loss, document_loss])
def test_the_two_halves_are_the_whole_backward(loss: Loss) -> None:
    batch, whole = cursor().read(0), model()
    wanted, _ = loss(whole, batch)
    wanted.backward()
    parts = [model().cut(part) for part in Part.even(SHAPE.layers, 3)]
    entries: list[Tensor | None] = []
    outs: list[Tensor] = []
    for part in parts:
        entries.append(outs[-1].detach().requires_grad_() if outs else None)
        part.arrived = entries[-1]
        try:
            outs.append(loss(part, batch)[0])
        except Leaving as end:
            outs.append(end.hidden)
    assert torch.equal(outs[-1], wanted)
    grad, later = torch.ones(()), list[Later]()
    for part, entry, out in reversed(list(zip(parts, entries, outs, strict=True))):
        if entry is None:
            out.backward(grad)
        else:
            grad, second = backward_to(entry, out, grad, list(part.parameters()))
            matrices = [name for name, weight in part.named_parameters() if weight.grad is None]
            assert any("experts" in name for name in matrices) and any("q_proj" in name for name in matrices)
            later.append(second)
    for second in later:
        second()
    gradients = {name: weight.grad for part in parts for name, weight in part.named_parameters()}
    for name, weight in whole.named_parameters():
        own = gradients[name]
        assert own is not None and weight.grad is not None
        assert torch.equal(own, weight.grad), name


def test_a_weight_that_meets_the_activations_twice_is_counted_twice() -> None:
    torch.manual_seed(0)
    layer, unused = nn.Linear(4, 4), nn.Parameter(torch.ones(2))
    x = torch.randn(3, 4, requires_grad=True)
    weights = [*layer.parameters(), unused]
    for _ in range(2):  # gradients are added to what is there
        out = layer(layer(x).tanh())
        into, later = backward_to(x, out, torch.ones_like(out), weights)
        later()
    plain = nn.Linear(4, 4)
    plain.load_state_dict(layer.state_dict())
    y = x.detach().requires_grad_()
    plain(plain(y).tanh()).sum().backward()
    assert y.grad is not None and torch.allclose(into, y.grad) and unused.grad is None
    for ours, theirs in zip(layer.parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None
        torch.testing.assert_close(ours.grad, 2 * theirs.grad)


def test_a_part_of_a_wider_cut_keeps_its_layers_numbers() -> None:
    part = Decoder(replace(SHAPE, layers=8), 0, Part.even(8, 4)[2])
    assert {name.split(".")[1] for name, _ in part.named_parameters()} == {"4", "5"}
