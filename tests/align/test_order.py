from __future__ import annotations

from collections import Counter

import torch

from ninthsky.align.order import by_language, permuted
from ninthsky.align.policy import load_policy, make_prompts


def test_each_step_has_one_language_by_its_share() -> None:
    prompts = make_prompts(load_policy(), "train", 64, {"en": 0.75, "zh": 0.25}, 7)
    order = by_language(prompts, 8, 7)
    languages: list[str] = []
    for step in range(16):
        found = {prompts[place].language for place in order(step).tolist()}
        assert len(found) == 1
        languages += found
    assert Counter(languages) == {"en": 12, "zh": 4}


def test_an_epoch_reads_every_prompt_once() -> None:
    prompts = make_prompts(load_policy(), "train", 32, {"en": 1.0}, 7)
    order = by_language(prompts, 16, 7)
    epoch = torch.cat([order(step) for step in range(4)])
    assert sorted(epoch.tolist()) == list(range(64))
    assert torch.equal(order(2), by_language(prompts, 16, 7)(2))
    assert not torch.equal(torch.cat([order(step) for step in range(4, 8)]), epoch)


def test_a_batch_across_two_epochs() -> None:
    batches = torch.cat([permuted(5, 3, 1, step) for step in range(5)])
    assert Counter(batches.tolist()) == dict.fromkeys(range(5), 3)
