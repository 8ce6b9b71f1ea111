from __future__ import annotations

import pytest
import torch

from ninthsky.model import Decoder, Shape
from ninthsky.model.decoder import Cache
from ninthsky.model.generate import generate, stream

SHAPE = Shape(97, 3, 32, 4, 2, 4, 2, 24, dense_layers=1, dense_dim=48)
LENGTHS = [3, 9, 1, 14, 9, 5, 20, 2, 7]


@pytest.fixture(scope="module")
def model() -> Decoder:
    made = Decoder(SHAPE, seed=2)
    with torch.no_grad():
        made.head.weight *= 20  # decided answers: no two tokens within rounding of each other
    return made.eval()


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(6, SHAPE.vocab, (length,), generator=generator).tolist() for length in LENGTHS]


@torch.no_grad()
def plainly(model: Decoder, prompt: list[int], count: int, stop: int) -> list[int]:
    """One prompt, everything computed anew for each token."""
    ids = list(prompt)
    while len(ids) < len(prompt) + count:
        token = int(model.logits(model(torch.tensor([ids])))[0, -1].argmax())
        if token == stop:
            break
        ids.append(token)
    return ids[len(prompt) :]


@pytest.mark.parametrize("rows", [1, 4, 128])
def test_batched_and_cached_equals_one_by_one_without_cache(model: Decoder, rows: int) -> None:
    wanted = [plainly(model, prompt, 16, stop=1) for prompt in prompts()]
    assert generate(model, prompts(), 16, rows=rows) == wanted
    assert len({tuple(answer) for answer in wanted}) == len(wanted)


def test_stop_token_ends_an_answer_and_not_its_neighbours(model: Decoder) -> None:
    free = [plainly(model, prompt, 16, stop=-1) for prompt in prompts()]
    stop = free[0][4]
    wanted = [plainly(model, prompt, 16, stop=stop) for prompt in prompts()]
    assert generate(model, prompts(), 16, stop=stop) == wanted
    assert len(wanted[0]) <= 4 and any(len(answer) == 16 for answer in wanted)


def test_one_prompt_gives_one_answer_and_streams_the_same(model: Decoder) -> None:
    prompt = prompts()[3]
    answer = generate(model, prompt, 12)
    assert answer == plainly(model, prompt, 12, stop=1)
    assert list(stream(model, prompt, 12)) == answer


def test_sampling_follows_the_seed_and_not_the_company(model: Decoder) -> None:
    many = generate(model, prompts(), 10, temperature=1.0, seed=4)
    assert many == generate(model, prompts(), 10, temperature=1.0, seed=4, rows=4)
    assert many != generate(model, prompts(), 10, temperature=1.0, seed=5)
    assert many[0] == generate(model, prompts()[0], 10, temperature=1.0, seed=4)


def test_sampling_has_the_model_s_distribution(model: Decoder) -> None:
    prompt = prompts()[1]
    with torch.no_grad():
        wanted = model.logits(model(torch.tensor([prompt])))[0, -1].div(6.0).softmax(-1)
    drawn = generate(model, [prompt] * 4000, 1, stop=-1, temperature=6.0, seed=0, rows=4000)
    share = torch.bincount(torch.tensor([answer[0] for answer in drawn]), minlength=SHAPE.vocab) / 4000
    assert float((share - wanted).abs().sum()) < 0.2  # total variation of 4,000 draws over 97 tokens is about 0.1


def test_cache_gives_the_logits_of_the_whole(model: Decoder) -> None:
    tokens = torch.randint(0, SHAPE.vocab, (2, 30), generator=torch.Generator().manual_seed(0))
    cache = Cache(model, 2, 30)
    with torch.no_grad():
        pieces = [model(part, cache=cache) for part in tokens.split([11, 1, 7, 1, 10], 1)]
        torch.testing.assert_close(torch.cat(pieces, 1), model(tokens), atol=2e-5, rtol=0)


def test_model_mode_is_given_back_and_empty_prompts_are_refused(model: Decoder) -> None:
    fresh = Decoder(SHAPE)
    assert fresh.training
    assert generate(fresh, [[5]], 0) == [[]]
    generate(fresh, [5], 3)
    assert fresh.training and not any(p.grad is not None for p in fresh.parameters())
    with pytest.raises(ValueError, match="empty prompt"):
        generate(model, [], 4)
    assert generate(model, [[5, 6]], 1, stop=-1) != []
