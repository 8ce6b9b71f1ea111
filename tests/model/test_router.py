from __future__ import annotations

import pytest
import torch

from ninthsky.model import Decoder, Shape
from ninthsky.model.decoder import Layer
from ninthsky.model.router import Router, pinned, recorded, routers

SHAPE = Shape(97, 3, 32, 4, 2, 8, 2, 24, dense_layers=1, dense_dim=48)


def draw(rows: int, length: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, SHAPE.vocab, (rows, length), generator=torch.Generator().manual_seed(seed))


def test_choices_are_recorded_by_router_and_forward() -> None:
    model = Decoder(SHAPE)
    with recorded(model) as choices:
        model(draw(2, 5))
        model(draw(1, 7))
    assert sorted(choices.calls) == ["layers.1.mlp.router", "layers.2.mlp.router"]
    assert [list(call.shape) for call in choices.calls["layers.2.mlp.router"]] == [[10, 2], [7, 2]]
    model(draw(2, 5))
    assert len(choices.calls["layers.1.mlp.router"]) == 2


def test_pinned_choices_hold_against_other_weights() -> None:
    model, other, tokens = Decoder(SHAPE), Decoder(SHAPE, seed=1), draw(2, 9)
    with recorded(model) as choices:
        before = model(tokens)
    with recorded(other) as others, torch.no_grad():
        free = other(tokens)
    with pinned(other, choices), recorded(other) as held:
        one = other(tokens)
    assert any(not torch.equal(others.calls[name][0], choices.calls[name][0]) for name in choices.calls)
    assert all(torch.equal(held.calls[name][0], choices.calls[name][0]) for name in choices.calls)
    assert not torch.allclose(one, free) and torch.equal(other(tokens), free)  # and let go afterwards
    with pinned(model, choices):
        assert torch.equal(model(tokens), before)
        with pytest.raises(ValueError, match="none left"):
            model(tokens)
    with pinned(model, choices), pytest.raises(ValueError, match="18"):
        model(tokens[:1])


def test_choices_are_dealt_to_ranks_positions_and_micro_batches() -> None:
    model, tokens = Decoder(SHAPE), draw(4, 6)
    with recorded(model) as choices:
        whole = model(tokens)
    other = Decoder(SHAPE)
    for router in (module for module in other.modules() if isinstance(module, Router)):
        router.e_score_correction_bias += torch.tensor([9.0, 9, 0, 0, 0, 0, 0, 0])  # would choose 0 and 1 by itself
    numbers = torch.arange(24).view(4, 6)
    with pinned(other, choices.dealt([numbers[3:], numbers[:2]])):
        torch.testing.assert_close(other(tokens[3:]), whole[3:], atol=1e-6, rtol=0)
        torch.testing.assert_close(other(tokens[:2]), whole[:2], atol=1e-6, rtol=0)
    with pinned(other, choices.dealt([numbers[:, :4]])):
        torch.testing.assert_close(other(tokens[:, :4]), whole[:, :4], atol=1e-6, rtol=0)
    with pytest.raises(KeyError), pinned(other, type(choices)({})):
        pass


def gradients(recompute: bool, precision: torch.dtype = torch.float32) -> tuple[Decoder, dict[str, torch.Tensor], float]:
    model = Decoder(SHAPE)
    for layer in model.layers:
        assert isinstance(layer, Layer)
        layer.recompute = recompute
    tokens = draw(2, 300)
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        loss = model.token_loss(model(tokens[:, :-1]), tokens[:, 1:])
    loss.backward()
    return model, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, float(loss.detach())


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_recomputation_gives_the_same_gradients_to_the_bit_and_counts_once(precision: torch.dtype) -> None:
    kept, wanted, loss = gradients(False, precision)
    again, got, same_loss = gradients(True, precision)
    assert loss == same_loss and wanted.keys() == got.keys() and all(torch.equal(wanted[name], got[name]) for name in got)
    for one, other in zip(routers(kept).values(), routers(again).values(), strict=True):
        assert torch.equal(one.load, other.load) and int(one.load.sum()) == 2 * 299 * 2


def test_recomputation_keeps_the_choice_that_was_made() -> None:
    """A choice that would fall otherwise the second time, as one ulp can make it, is held: the gradient is the forward's."""
    model, tokens = Decoder(SHAPE), draw(2, 20)
    for layer in model.layers:
        assert isinstance(layer, Layer)
        layer.recompute = True
    with recorded(model) as choices:
        loss = model.token_loss(model(tokens[:, :-1]), tokens[:, 1:])
        for router in routers(model).values():
            router.e_score_correction_bias.copy_(torch.tensor([0.0, 0, 0, 0, 0, 0, 9, 9]))
        loss.backward()
    assert all(len(calls) == 1 for calls in choices.calls.values())
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    plain = Decoder(SHAPE)
    plain.token_loss(plain(tokens[:, :-1]), tokens[:, 1:]).backward()
    wanted = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_recomputation_keeps_less() -> None:
    def kept(recompute: bool) -> int:
        model, tokens, held = Decoder(SHAPE), draw(4, 300), 0
        for layer in model.layers:
            assert isinstance(layer, Layer)
            layer.recompute = recompute

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal held
            held += tensor.numel() if not isinstance(tensor, torch.nn.Parameter) else 0
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            hidden = model(tokens)
        hidden.sum().backward()
        return held

    inputs = len(Decoder(SHAPE).layers) * 4 * 300 * SHAPE.dim  # what the recomputed layers hold themselves
    assert kept(True) + inputs < kept(False) / 10
