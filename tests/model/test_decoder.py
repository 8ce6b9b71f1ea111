from __future__ import annotations

from typing import Any

import pytest
import torch

from ninthsky.config.schema import Model
from ninthsky.errors import UserError
from ninthsky.model import Decoder, Shape
from ninthsky.model.attention import Documents
from ninthsky.model.experts import Experts, SparseFeedForward
from ninthsky.model.router import Router
from ninthsky.train.step.loss import document_loss, documents, next_token_loss

SMALL = Shape(
    vocab=97, layers=3, dim=32, heads=4, kv_heads=2, experts=4, experts_per_token=2, expert_dim=24, dense_layers=1, dense_dim=48
)


def draw(rows: int, length: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, SMALL.vocab, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize(("shared", "dense"), [(1, 1), (2, 0), (0, 2)])
def test_counts_of_the_shape_are_the_counts_of_the_model(qk_norm: bool, shared: int, dense: int) -> None:
    shape = Shape(97, 3, 32, 4, 2, 4, 2, 24, shared_experts=shared, dense_layers=dense, dense_dim=48, qk_norm=qk_norm)
    model = Decoder(shape)
    assert shape.parameters() == sum(p.numel() for p in model.parameters())
    idle = sum(p.numel() for m in model.modules() if isinstance(m, Experts) for p in m.parameters()) // 4 * 2
    assert shape.active_parameters() == shape.parameters() - idle


def test_flops_are_those_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model, length = Decoder(SMALL), 16
    with FlopCounterMode(display=False) as counter:
        model.logits(model(draw(2, length))).sum().backward()
    counted = counter.get_total_flops() / (2 * length)
    # torch counts attention without the causal half and does not count the grouped product of experts.
    attention = 12.0 * SMALL.layers * SMALL.dim
    experts = 6.0 * SMALL.sparse_layers * SMALL.experts_per_token * 3 * SMALL.dim * SMALL.expert_dim
    ours = SMALL.flops_per_token(length) - attention * (length + 1) / 2 + attention * length - experts
    assert counted == pytest.approx(ours, rel=0.15)


@pytest.mark.parametrize(
    "wrong",
    [
        {"heads": 5},
        {"kv_heads": 3},
        {"experts_per_token": 9},
        {"dense_layers": 4},
        {"dense_dim": 0},
        {"dim": 36, "head_dim": 0},
        {"head_dim": 9},
        {"rotary": 0.4},
        {"rotary": 0.0},
        {"expert_dims": (24, 8)},
        {"expert_dims": (24, 8, 24, 8)},
        {"expert_dims": (16, 16, 8, 8)},
    ],
)
def test_impossible_shapes_are_refused(wrong: dict[str, int]) -> None:
    sizes: dict[str, Any] = {name: getattr(SMALL, name) for name in SMALL.__dataclass_fields__}
    with pytest.raises(UserError, match="N9-CFG-013"):
        Shape(**{**sizes, **wrong})


def test_shape_wants_a_filled_block() -> None:
    with pytest.raises(UserError, match="layers"):
        Shape.of(Model(), vocab=10)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    one, same, other = (Decoder(SMALL, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])


def test_weights_are_drawn_by_name_so_that_a_slice_of_experts_is_the_same_in_a_larger_model() -> None:
    wider = Decoder(Shape(97, 3, 32, 4, 2, 8, 2, 24, dense_layers=1, dense_dim=48)).state_dict()
    ours = Decoder(SMALL).state_dict()
    name = "layers.1.mlp.experts.gate_up"
    assert torch.equal(ours[name], wider[name][:4])


def test_no_seed_leaves_zeros() -> None:
    assert all(not tensor.any() for tensor in Decoder(SMALL, None).state_dict().values())


def test_a_position_does_not_depend_on_what_comes_later() -> None:
    model, tokens = Decoder(SMALL), draw(2, 20)
    changed = tokens.clone()
    changed[:, 12:] = draw(2, 8, seed=9)
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :12], after[:, :12], atol=1e-6, rtol=0)
    assert not torch.allclose(before[:, 12:], after[:, 12:], atol=1e-3)


def test_a_prefix_sees_itself_both_ways_and_nothing_after_it() -> None:
    model, tokens = Decoder(SMALL), draw(2, 20)
    early, late = tokens.clone(), tokens.clone()
    early[:, 5] += 1
    late[:, 9] += 1
    plain = model(embeddings=model.embed(tokens), prefix=8)
    assert not torch.allclose(plain[:, 0], model(embeddings=model.embed(early % 97), prefix=8)[:, 0], atol=1e-4)
    torch.testing.assert_close(plain[:, :9], model(embeddings=model.embed(late % 97), prefix=8)[:, :9], atol=1e-6, rtol=0)


def test_embeddings_and_tokens_are_the_same_road() -> None:
    model, tokens = Decoder(SMALL), draw(2, 9)
    assert torch.equal(model(tokens), model(embeddings=model.embed(tokens)))
    with pytest.raises(TypeError):
        model(tokens, embeddings=model.embed(tokens))
    with pytest.raises(TypeError):
        model()


def test_left_padding_changes_nothing_for_the_row() -> None:
    model, tokens = Decoder(SMALL), draw(1, 7)
    padded = torch.cat((torch.zeros(1, 5, dtype=torch.long), tokens), 1)
    both = torch.cat((padded, draw(1, 12, seed=2)))
    together = model(both, padding=torch.tensor([5, 0]))
    torch.testing.assert_close(together[:1, 5:], model(tokens), atol=1e-5, rtol=0)
    torch.testing.assert_close(together[1:], model(both[1:]), atol=1e-5, rtol=0)


def test_experts_multiplied_together_equal_experts_one_by_one() -> None:
    layer: Any = SparseFeedForward(SMALL)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    x = torch.randn(3, 10, SMALL.dim, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weights, chosen, counts = layer.router(x.reshape(-1, SMALL.dim))
    assert counts.tolist() == torch.bincount(chosen.flatten(), minlength=4).tolist()
    torch.testing.assert_close(weights.sum(-1), torch.ones(30))
    wanted = torch.zeros(30, SMALL.dim)
    for row, (token, picks) in enumerate(zip(x.reshape(-1, SMALL.dim), chosen.tolist(), strict=True)):
        for weight, expert in zip(weights[row], picks, strict=True):
            gate, up = (token @ layer.experts.gate_up[expert]).chunk(2)
            wanted[row] = wanted[row] + weight * ((torch.nn.functional.silu(gate) * up) @ layer.experts.down[expert])
    assert layer.shared is not None
    wanted = wanted + layer.shared(x.reshape(-1, SMALL.dim))
    got = layer(x)
    torch.testing.assert_close(got.reshape(-1, SMALL.dim), wanted, atol=1e-5, rtol=1e-5)
    ours, theirs = (
        torch.autograd.grad(got.square().sum(), x, retain_graph=True)[0],
        torch.autograd.grad(wanted.square().sum(), x)[0],
    )
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_router_counts_in_training_only_and_once() -> None:
    router = Router(SMALL)
    torch.nn.init.normal_(router.weight, generator=torch.Generator().manual_seed(0))
    x = torch.randn(50, SMALL.dim, generator=torch.Generator().manual_seed(1))
    _, _, counts = router(x)
    assert router.load.tolist() == counts.tolist() and int(counts.sum()) == 100
    router.eval()
    router(x)
    router.train()
    with torch.no_grad():
        router(x)
    assert router.load.tolist() == counts.tolist()


def test_balancing_evens_the_load_and_does_not_drift() -> None:
    router = Router(SMALL)
    torch.nn.init.normal_(router.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    skewed = torch.randn(400, SMALL.dim, generator=torch.Generator().manual_seed(1)) + 10 * router.weight[2].detach()
    _, _, before = router(skewed)
    for _ in range(300):
        router.balance(router.load.clone(), rate=2e-3)
        router(skewed)
    _, _, after = router(skewed)
    assert int(before.max() - before.min()) > 250
    assert int(after.max() - after.min()) < 60
    assert abs(float(router.e_score_correction_bias.mean())) < 1e-6


def test_the_bias_chooses_but_does_not_weigh() -> None:
    router = Router(SMALL)
    torch.nn.init.normal_(router.weight, generator=torch.Generator().manual_seed(0))
    router.e_score_correction_bias.copy_(torch.tensor([10.0, 10.0, 0.0, 0.0]))
    x = torch.randn(20, SMALL.dim, generator=torch.Generator().manual_seed(1))
    weights, chosen, _ = router(x)
    assert {0, 1} == set(chosen.flatten().tolist())
    scores = (x @ router.weight.T).sigmoid().gather(1, chosen)
    torch.testing.assert_close(weights, scores / scores.sum(-1, keepdim=True))


@pytest.mark.parametrize("counts", [[10, 0, 33, 64], [0, 0, 0, 5], [1, 1, 1, 1], [32, 0, 32, 0]])
def test_rows_spaced_for_bf16_come_back_to_their_places(counts: list[int]) -> None:
    experts = Experts(4, 16, 24)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    x = torch.randn(sum(counts), 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    plain = experts(x, torch.tensor(counts))
    with torch.autocast("cpu", torch.bfloat16):
        spaced = experts(x, torch.tensor(counts))
    assert spaced.dtype == torch.bfloat16
    inputs = (x, *experts.parameters())
    pairs = [
        (spaced, plain),
        *zip(*(torch.autograd.grad(y.float().square().sum(), inputs) for y in (spaced, plain)), strict=True),
    ]
    for got, wanted in pairs:
        assert float((got - wanted).detach().norm()) < 0.03 * float(wanted.detach().norm())


def packed(rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and the numbers of their documents; a token 1 opens one."""
    tokens = draw(rows, length).clamp(min=2)
    tokens[torch.rand(rows, length, generator=torch.Generator().manual_seed(4)) < 0.04] = 1
    return tokens, documents(tokens)


@pytest.mark.parametrize("length", [40, 300])  # torch's attention with a mask; our own by blocks
def test_packed_documents_equal_documents_alone(length: int) -> None:
    tokens, numbers = packed(3, length)
    model = Decoder(SMALL)
    alone = Decoder(SMALL)
    hidden = model(tokens, documents=numbers)
    grad = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(5))
    hidden.backward(grad)
    assert not torch.allclose(hidden, Decoder(SMALL)(tokens), atol=1e-2)
    for row in range(3):
        for number in numbers[row].unique():
            at = (numbers[row] == number).nonzero()[:, 0]
            own = alone(tokens[row : row + 1, at])
            torch.testing.assert_close(own, hidden[row : row + 1, at], atol=2e-5, rtol=0)
            own.backward(grad[row : row + 1, at])
    for (name, one), other in zip(model.named_parameters(), alone.parameters(), strict=True):
        if one.grad is not None:
            assert other.grad is not None
            assert float((one.grad - other.grad).norm()) <= 1e-5 * float(other.grad.norm()), name


def test_documents_are_told_apart_by_their_opening_token() -> None:
    tokens = torch.tensor([[5, 6, 1, 7, 1, 1, 8], [1, 5, 6, 7, 8, 9, 1]])
    assert documents(tokens).tolist() == [[0, 0, 1, 1, 2, 3, 3], [1, 1, 1, 1, 1, 1, 2]]
    assert Documents(documents(tokens)).begins.tolist() == [[0, 0, 2, 2, 4, 5, 5], [0, 0, 0, 0, 0, 0, 6]]
    model, batch = Decoder(SMALL), torch.cat((tokens, tokens[:, :1]), 1)
    loss, count = document_loss(model, batch)
    other, _ = next_token_loss(model, batch)
    assert count == 14 and float(loss.detach()) != float(other.detach())
    with pytest.raises(TypeError, match="documents"):
        model(tokens, documents=documents(tokens), prefix=3)


def test_experts_of_two_sizes_equal_experts_one_by_one() -> None:
    shape = Shape(97, 1, 32, 4, 2, 8, 2, 24, dense_layers=0, expert_dims=(24, 24, 8, 8, 8, 8, 8, 8))
    model = Decoder(shape)
    assert shape.parameters() == sum(p.numel() for p in model.parameters())
    layer: Any = model.layers[0].mlp
    x = torch.randn(40, 32, generator=torch.Generator().manual_seed(0))
    weights, chosen, _ = layer.router(x)
    wanted = layer.shared(x)
    for row, picks in enumerate(chosen.tolist()):
        for weight, expert in zip(weights[row], picks, strict=True):
            experts, place = layer.experts.place(expert)
            assert experts.down.shape[1] == shape.expert_dims[expert]
            gate, up = (x[row] @ experts.gate_up[place]).chunk(2)
            wanted[row] = wanted[row] + weight * ((torch.nn.functional.silu(gate) * up) @ experts.down[place])
    torch.testing.assert_close(layer(x), wanted, atol=1e-5, rtol=1e-5)
    with pytest.raises(IndexError):
        layer.experts.place(8)


def test_a_token_meets_the_mean_of_unequal_experts() -> None:
    shape = Shape(97, 1, 32, 4, 2, 8, 2, 24, dense_layers=0, expert_dims=(24, 24, 8, 8, 8, 8, 8, 8))
    equal = Shape(97, 1, 32, 4, 2, 8, 2, 12, dense_layers=0, shared_experts=2)  # 96 wide in all, as the others are
    assert shape.parameters() == equal.parameters() and shape.active_parameters() == equal.active_parameters()
    assert shape.flops_per_token(64) == equal.flops_per_token(64)


def test_biases_heads_wider_than_the_stream_and_partial_rotation_count_right() -> None:
    shape = Shape(97, 2, 32, 4, 2, 4, 2, 24, dense_layers=1, dense_dim=48, head_dim=16, attention_bias=True, rotary=0.5)
    model: Any = Decoder(shape)
    assert shape.parameters() == sum(p.numel() for p in model.parameters())
    biases = {name: p for name, p in model.named_parameters() if name.endswith("bias")}
    assert len(biases) == 6 and not any(p.any() for p in biases.values())
    model.layers[0].attention.q_proj.bias.data += 1.0  # what is turned by positions shows in one half of a head alone
    assert not torch.equal(model(draw(1, 9)), Decoder(shape)(draw(1, 9)))
