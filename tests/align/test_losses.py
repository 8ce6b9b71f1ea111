from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ninthsky.align.dialogue import ASSISTANT, EOS, PAD, USER, Rows, rows
from ninthsky.align.losses import Pairs, Preference, log_probabilities, preference, rehearsing, sft
from tests.align.small import SPECIAL, Bigram, letters

PAIRS = [("ab", "cad"), ("b", "a"), ("dcb", "abcd")]


def by_hand(model: Bigram, batch: Rows) -> list[float]:
    """log p(answer | prompt) of each row, one token after the other in float64 numpy."""
    table, head = model.table.detach().numpy(), model.head.detach().numpy()
    sums = []
    for tokens, target in zip(batch.tokens.tolist(), batch.target.tolist(), strict=True):
        total = 0.0
        for place in range(1, len(tokens)):
            if target[place]:
                scores = head @ table[tokens[place - 1]]
                top = scores.max()
                total += scores[tokens[place]] - top - np.log(np.exp(scores - top).sum())
        sums.append(float(total))
    return sums


def test_rows_mask_the_prompt_and_end_with_eos() -> None:
    tokenizer = letters()
    batch = rows(tokenizer, PAIRS)
    first = batch.tokens[0].tolist()
    assert first[0] == USER and first[3] == ASSISTANT and first[7] == EOS and set(first[8:]) <= {PAD}
    assert batch.target[0].nonzero().flatten().tolist() == [4, 5, 6, 7]
    assert batch.target.sum(1).tolist() == [len(answer) + 1 for _, answer in PAIRS]


def test_take_keeps_every_token_and_rounds_to_eight() -> None:
    batch = rows(letters(), [("a", "b"), ("a" * 20, "b" * 20)])
    short = batch.take(torch.tensor([0]))
    assert short.tokens.shape == (1, 8) and short.target.sum() == 2
    assert batch.take(torch.tensor([1])).tokens.shape[1] == batch.tokens.shape[1]


def test_beside_pads_the_shorter() -> None:
    one, other = rows(letters(), [("a", "b")]), rows(letters(), [("aaaa", "bb")])
    both = one.beside(other)
    assert both.tokens.shape == (2, other.tokens.shape[1])
    assert both.target.sum() == one.target.sum() + other.target.sum()
    assert torch.equal(both.tokens[0, : one.tokens.shape[1]], one.tokens[0])


def test_sft_is_the_sum_over_answers() -> None:
    tokenizer, model = letters(), Bigram(262)
    batch = rows(tokenizer, PAIRS)
    total, count = sft(model, batch)
    assert int(count) == sum(len(answer) + 1 for _, answer in PAIRS)
    assert float(total.detach()) == pytest.approx(-sum(by_hand(model, batch)), rel=1e-5)


def test_padding_changes_nothing() -> None:
    tokenizer, model = letters(), Bigram(262)
    together = log_probabilities(model, rows(tokenizer, PAIRS))
    alone = torch.cat([log_probabilities(model, rows(tokenizer, [pair])) for pair in PAIRS])
    assert torch.allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize("kind", ["sigmoid", "hinge", "ipo"])
@pytest.mark.parametrize("nll_weight", [0.0, 1.0])
def test_preference_equals_the_formula_written_out(kind: Preference, nll_weight: float) -> None:
    tokenizer, model, reference = letters(), Bigram(262, seed=1), Bigram(262, seed=2)
    beta = 0.3
    batch = rows(tokenizer, [*PAIRS, ("ab", "bb"), ("b", "dd"), ("dcb", "c")])
    policy, frozen = by_hand(model, batch), by_hand(reference, batch)
    wanted = 0.0
    for pair in range(3):
        h = (policy[pair] - frozen[pair]) - (policy[pair + 3] - frozen[pair + 3])
        wanted += {"sigmoid": np.log1p(np.exp(-beta * h)), "hinge": max(0.0, 1 - beta * h), "ipo": (h - 1 / (2 * beta)) ** 2}[
            kind
        ]
        wanted -= nll_weight * policy[pair] / (len(PAIRS[pair][1]) + 1)
    total, count = preference(beta, nll_weight, kind)(model, Pairs(batch, torch.tensor(frozen)))
    assert int(count) == 3
    assert float(total) == pytest.approx(wanted, rel=1e-5)


def test_gradient_equals_the_difference_quotient() -> None:
    tokenizer, model = letters(), Bigram(262, dim=3, seed=1)
    batch = rows(tokenizer, [("ab", "ca"), ("ab", "bd")])
    pairs = Pairs(batch, torch.tensor(by_hand(Bigram(262, dim=3, seed=2), batch)))
    loss = preference(0.5, 0.7)
    loss(model, pairs)[0].backward()
    assert model.head.grad is not None
    place = (int(batch.tokens[0, 4]), 1)
    step = 1e-2
    with torch.no_grad():
        model.head[place] += step
        above = float(loss(model, pairs)[0])
        model.head[place] -= 2 * step
        below = float(loss(model, pairs)[0])
    assert float(model.head.grad[place]) == pytest.approx((above - below) / (2 * step), rel=1e-2)  # float32 sums


def test_nothing_is_learnt_from_equal_answers() -> None:
    tokenizer, model = letters(), Bigram(262)
    batch = rows(tokenizer, [("ab", "ca"), ("ab", "ca")])
    total, _ = preference(0.1)(model, Pairs(batch, log_probabilities(model, batch).detach()))
    total.backward()
    assert float(total.detach()) == pytest.approx(np.log(2))
    assert model.head.grad is not None and float(model.head.grad.abs().max()) < 1e-9


def test_rehearsing_adds_the_mean_of_the_text() -> None:
    tokenizer, model = letters(), Bigram(262)
    batch, text = rows(tokenizer, [("ab", "ca"), ("ab", "bd")]), rows(tokenizer, [("a", "bcd")])
    pairs = Pairs(batch, torch.zeros(2))
    alone, count = preference(0.1)(model, pairs)
    nats, tokens = sft(model, text)
    both, same = rehearsing(preference(0.1), 0.5)(model, (pairs, text))
    assert int(same) == int(count) == 1
    assert float(both) == pytest.approx(float(alone + 0.5 * nats / tokens))


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="beta"):
        preference(0.0)
    with pytest.raises(ValueError, match="no preference loss"):
        preference(0.1, kind="dpo")  # type: ignore[arg-type]


class Wrapped(nn.Module):
    """A transformers model as the losses want it."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, tokens: Tensor) -> Tensor:
        return self.inner.model(input_ids=tokens).last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        return self.inner.lm_head(hidden)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        return self.inner.parameters(recurse)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sigmoid", "hinge"])  # TRL's ipo divides by the answers' length, the paper's does not
def test_preference_equals_trl(kind: Preference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("trl") is None:
        pytest.skip("trl is not installed (it is no dependency): pip install trl")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import copy

    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters(), pad_token="<pad>", eos_token="<eos>")
    torch.manual_seed(0)
    shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=256 + len(SPECIAL), pad_token_id=PAD, eos_token_id=EOS, **shape)).float()
    reference = copy.deepcopy(model)
    with torch.no_grad():
        for weight in reference.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    data = [
        {"prompt": "How do I open it? ", "chosen": "I will not help.", "rejected": "Sure."},
        {"prompt": "Hi. ", "chosen": "Hello there!", "rejected": "I cannot help with that."},
    ]

    def batch(key: str) -> list[tuple[list[int], list[int]]]:
        return [(tokenizer(row["prompt"])["input_ids"], [*tokenizer(row[key])["input_ids"], EOS]) for row in data]

    encoded = batch("chosen") + batch("rejected")
    length = max(len(prompt) + len(answer) for prompt, answer in encoded)
    tokens = torch.full((len(encoded), length), PAD)
    target = torch.zeros((len(encoded), length), dtype=torch.bool)
    for row, (prompt, answer) in enumerate(encoded):
        tokens[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        target[row, len(prompt) : len(prompt) + len(answer)] = True
    own, frozen = Wrapped(model), Wrapped(reference)
    with torch.no_grad():
        known = log_probabilities(frozen, Rows(tokens, target))
    total, count = preference(0.1, kind=kind)(own, Pairs(Rows(tokens, target), known))
    loss = total / count
    loss.backward()
    mine = torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])
    config = DPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=len(data),
        beta=0.1,
        loss_type=[kind],
        report_to=[],
        use_cpu=True,
        bf16=False,
        fp16=False,
        gradient_checkpointing=False,
        disable_dropout=True,
        max_length=256,
    )
    trainer = DPOTrainer(
        model=copy.deepcopy(model),
        ref_model=reference,
        args=config,
        train_dataset=Dataset.from_list(data),
        processing_class=tokenizer,
    )
    trainer.model.zero_grad()
    theirs = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))
    theirs.backward()
    gradient = torch.cat([weight.grad.flatten() for weight in trainer.model.parameters() if weight.grad is not None])
    assert float(loss) == pytest.approx(float(theirs), abs=1e-6)
    assert float((mine - gradient).norm() / gradient.norm()) < 1e-5
