from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ninthsky.model.deal import ROUND, Deal


def chosen_of(tokens: int, experts: int, k: int) -> tuple[Tensor, Tensor]:
    scores = torch.rand(tokens, experts, generator=torch.Generator().manual_seed(tokens))
    chosen = scores.topk(k, -1).indices
    return chosen, torch.bincount(chosen.flatten(), minlength=experts)


@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize(("tokens", "experts", "k"), [(50, 4, 2), (7, 8, 3), (1, 5, 1), (64, 2, 2)])
def test_rows_are_sorted_by_expert_and_every_choice_has_its_own(tokens: int, experts: int, k: int, fill: bool) -> None:
    chosen, counts = chosen_of(tokens, experts, k)
    deal = Deal.of(chosen, counts, fill)
    assert len(deal.source) == int(deal.counts.sum())
    assert len(set(deal.place.flatten().tolist())) == tokens * k
    expert_of_row = torch.arange(experts).repeat_interleave(deal.counts)
    assert torch.equal(expert_of_row[deal.place], chosen)
    assert torch.equal(deal.source[deal.place], torch.arange(tokens)[:, None].expand(-1, k))
    if fill:
        assert not (deal.counts % ROUND).any() and bool((deal.counts - counts < ROUND).all())
    else:
        assert torch.equal(deal.counts, counts)


@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_spread_and_collect_are_the_sum_over_choices_forward_and_backward(fill: bool, weighted: bool) -> None:
    chosen, counts = chosen_of(40, 6, 3)
    deal = Deal.of(chosen, counts, fill)
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    weights = torch.rand(40, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64).requires_grad_()
    matrices = torch.randn(6, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64).requires_grad_()
    rows = torch.cat([part @ matrix for part, matrix in zip(deal.spread(x).split(deal.counts.tolist()), matrices, strict=True)])
    got = deal.collect(rows, weights if weighted else None)
    each = torch.einsum("nd,nkde->nke", x, matrices[chosen])
    wanted = (each * weights[..., None] if weighted else each).sum(1)
    torch.testing.assert_close(got, wanted)
    back = torch.randn(got.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    inputs = (x, matrices, weights) if weighted else (x, matrices)
    for own, other in zip(torch.autograd.grad(got, inputs, back), torch.autograd.grad(wanted, inputs, back), strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-5)  # the weights' gradient is summed in fp32


def test_an_expert_nobody_chose_has_no_row() -> None:
    chosen = torch.tensor([[0, 2], [2, 0]])
    deal = Deal.of(chosen, torch.tensor([2, 0, 2]), fill=True)
    assert deal.counts.tolist() == [ROUND, 0, ROUND]
