from __future__ import annotations

import pytest
import torch
import torch._inductor.exc
import torch.nn.functional as F
from torch import Tensor

from ninthsky.errors import UserError
from ninthsky.model import Decoder, Shape, formulas, fused


def noise(*sizes: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


def compare(ours: Tensor, theirs: Tensor, inputs: tuple[Tensor, ...], tolerance: float) -> None:
    """Values and all gradients, by relative error of the whole tensor."""
    back = torch.randn(ours.shape, generator=torch.Generator().manual_seed(9))
    pairs = [(ours, theirs)]
    own = torch.autograd.grad(ours, inputs, back.to(ours.dtype))
    pairs += list(zip(own, torch.autograd.grad(theirs, inputs, back.to(theirs.dtype)), strict=True))
    for got, wanted in pairs:
        assert got.shape == wanted.shape and got.dtype == wanted.dtype
        assert float((got - wanted).norm() / wanted.norm()) < tolerance


def test_rms_norm() -> None:
    x, weight = noise(3, 5, 16), noise(16, seed=1)
    wanted = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-3) * weight
    compare(fused.rms_norm(x, weight, 1e-3), wanted, (x, weight), 1e-6)


def test_rotate_turns_pairs_by_their_angle() -> None:
    x, angle = noise(2, 7, 3, 8), torch.randn(7, 1, 4, generator=torch.Generator().manual_seed(1))
    turned = torch.polar(torch.ones_like(angle), angle) * torch.complex(*x.chunk(2, -1))
    compare(fused.rotate(x, angle.cos(), angle.sin()), torch.cat((turned.real, turned.imag), -1), (x,), 1e-6)


def test_gated_silu() -> None:
    x = noise(5, 3, 12)
    gate, up = x.chunk(2, -1)
    compare(fused.gated_silu(x), F.silu(gate) * up, (x,), 1e-6)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("length", [1, 63, 64, 65, 200])
def test_causal_attention(heads: int, kv_heads: int, length: int) -> None:
    q, k, v = (noise(2, length, h, 8, seed=s) for s, h in enumerate((heads, kv_heads, kv_heads)))
    rows, keys, values = (x.transpose(1, 2) for x in (q, k, v))
    wanted = F.scaled_dot_product_attention(rows, keys, values, is_causal=True, enable_gqa=True).transpose(1, 2)
    if length == 1:  # one position sees itself only: queries and keys do not matter, their gradients are 0
        compare(fused.causal_attention(q, k, v), wanted, (v,), 1e-5)
    else:
        compare(fused.causal_attention(q, k, v), wanted, (q, k, v), 1e-5)


def test_causal_attention_in_bf16_is_no_worse_than_twice_the_flash_kernel_s_rounding() -> None:
    q, k, v = (noise(2, 300, h, 16, seed=s, dtype=torch.bfloat16) for s, h in enumerate((4, 2, 2)))
    back = torch.randn(2, 300, 4, 16, generator=torch.Generator().manual_seed(5))

    def plain(*parts: Tensor) -> Tensor:
        rows, keys, values = (x.transpose(1, 2) for x in parts)
        return F.scaled_dot_product_attention(rows, keys, values, is_causal=True, enable_gqa=True).transpose(1, 2)

    def results(attention: object, *parts: Tensor) -> list[Tensor]:
        assert callable(attention)
        out = attention(*parts)
        return [out, *torch.autograd.grad(out, parts, back.to(out.dtype))]

    exact = results(plain, *(x.detach().double().requires_grad_() for x in (q, k, v)))
    for ours, theirs, wanted in zip(results(fused.causal_attention, q, k, v), results(plain, q, k, v), exact, strict=True):
        own, other = (float((x.double() - wanted).norm() / wanted.norm()) for x in (ours, theirs))
        assert own < 2 * other + 1e-4 and own < 0.01


@pytest.mark.parametrize("rows", [3, 7, 64])
def test_output_loss(rows: int) -> None:
    hidden, weight = noise(20, 16), noise(31, 16, seed=1)
    targets = torch.randint(0, 31, (20,), generator=torch.Generator().manual_seed(2))
    targets[[0, 6, 19]] = -100
    wanted = F.cross_entropy(hidden @ weight.t(), targets, reduction="sum", ignore_index=-100)
    compare(fused.output_loss(hidden, weight, targets, rows=rows), wanted, (hidden, weight), 1e-5)


def test_output_loss_of_large_logits_and_of_nothing_counted() -> None:
    hidden, weight = noise(4, 8), (noise(9, 8, seed=1).detach() * 1e3).requires_grad_()
    targets = torch.tensor([1, 2, 3, 4])
    wanted = F.cross_entropy(hidden @ weight.t(), targets, reduction="sum")
    assert float(fused.output_loss(hidden, weight, targets)) == pytest.approx(float(wanted), rel=1e-6)
    nothing = fused.output_loss(hidden, weight, torch.full((4,), -100))
    assert float(nothing) == 0 and not any(grad.any() for grad in torch.autograd.grad(nothing, (hidden, weight)))


def test_bf16_gradients_of_the_whole_model_stay_near_fp32() -> None:
    shape = Shape(97, 2, 32, 4, 2, 4, 4, 24, dense_layers=1, dense_dim=48)  # every expert is chosen: no choice can flip
    tokens = torch.randint(0, 97, (2, 80), generator=torch.Generator().manual_seed(0))
    gradients = []
    for enabled in (False, True):
        model = Decoder(shape)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = model.token_loss(model(tokens[:, :-1]), tokens[:, 1:])
        loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, wanted in gradients[0].items():
        got = gradients[1][name]
        assert wanted is not None and got is not None and got.dtype == torch.float32
        assert float((got - wanted).norm() / wanted.norm()) < 0.05, name


def test_the_road_in_training_and_in_evaluation_gives_the_same_numbers() -> None:
    shape = Shape(97, 2, 32, 4, 2, 4, 2, 24, dense_layers=1, dense_dim=48)
    model, tokens = Decoder(shape), torch.randint(0, 97, (1, 300), generator=torch.Generator().manual_seed(0))
    trained = model.logits(model(tokens))
    with torch.no_grad():
        torch.testing.assert_close(trained.detach(), model.logits(model(tokens)), atol=1e-5, rtol=0)
    told = float(model.token_loss(model(tokens[:, :-1]), tokens[:, 1:]).detach())
    assert told == pytest.approx(float(F.cross_entropy(trained[0, :-1], tokens[0, 1:], reduction="sum").detach()), rel=1e-5)


def test_ignored_targets_and_a_slice_that_does_not_divide_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "SLICE", 31 * 3)
    test_output_loss(7)


@pytest.mark.slow
def test_compiled_formulas_are_the_same_steps() -> None:
    """Eager and compiled: the same loss and gradients up to rounding, with an ignored target and a z-loss."""
    shape = Shape(97, 2, 32, 4, 4, 4, 4, 24, dense_layers=0)  # every expert is chosen: no choice can flip
    tokens = torch.randint(0, 97, (2, 80), generator=torch.Generator().manual_seed(0))
    tokens[0, 5] = 11
    told: list[dict[str, Tensor]] = []
    for on in (False, True):
        model = Decoder(shape)
        model.z_loss = 1e-3
        with formulas.compiled(on):
            loss = model.token_loss(model(tokens[:, :-1]), tokens[:, 1:], ignored=11)
            loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        told.append({"loss": loss.detach(), **{name: grad for name, grad in gradients.items() if grad is not None}})
    assert told[0].keys() == told[1].keys() and len(told[0]) == 1 + len(list(model.named_parameters()))
    for name, wanted in told[0].items():
        assert float((told[1][name] - wanted).norm() / wanted.norm()) < 2e-5, name
    assert not formulas.asked()


def test_no_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise torch._inductor.exc.InductorError(RuntimeError("no g++"), None)

    monkeypatch.setattr(formulas, "rms_norm", broken)
    with pytest.raises(UserError) as told:
        formulas.check(torch.device("cpu"))
    assert told.value.code == "N9-TRN-021" and "no g++" in str(told.value)
