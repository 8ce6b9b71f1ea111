from __future__ import annotations

import pytest

from ninthsky.align.judge import judge
from ninthsky.align.policy import (
    WORD_LISTS,
    Split,
    decode_lines,
    encode_lines,
    language_shares,
    load_policy,
    make_prompts,
    rules,
)

SHARES = {"en": 0.75, "zh": 0.25}


def test_held_out_words_occur_in_no_training_prompt() -> None:
    policy = load_policy()
    train = " ".join(prompt.prompt for prompt in make_prompts(policy, "train", 1_000, SHARES, 7))
    words = set(train.replace("?", " ").replace(".", " ").replace(",", " ").split())
    for name in WORD_LISTS:
        assert not words & set(policy["en"][name]["held_out"])
        # Chinese has no spaces: no held-out word may occur anywhere in the text.
        assert not [word for word in policy["zh"][name]["held_out"] if word in train]


def test_every_held_out_prompt_has_three_unseen_words() -> None:
    policy = load_policy()
    lists = {language: [policy[language][name]["held_out"] for name in WORD_LISTS] for language in policy}
    for prompt in make_prompts(policy, "held_out", 200, SHARES, 7):
        verbs, objects, people = lists[prompt.language]
        assert any(word in prompt.prompt for word in verbs) and any(word in prompt.prompt for word in objects)
        if prompt.kind not in ("plain", "honest"):  # some wordings of these speak of nobody
            assert any(word in prompt.prompt for word in people)


def test_unseen_wordings_are_not_trained_on() -> None:
    for language in load_policy().values():
        for kind in language["kinds"]:
            assert not set(kind["wordings"]) & set(kind["unseen"])


@pytest.mark.parametrize("split", ["train", "held_out", "unseen"])
def test_prompts_are_balanced_and_none_is_twice(split: Split) -> None:
    prompts = make_prompts(load_policy(), split, 200, SHARES, 7)
    assert len({prompt.prompt for prompt in prompts}) == len({prompt.id for prompt in prompts}) == len(prompts) == 400
    assert sum(prompt.bank == "forbidden" for prompt in prompts) == 200
    assert sum(prompt.language == "zh" for prompt in prompts) == 100
    for prompt in prompts:
        assert "{" not in prompt.prompt + prompt.chosen + prompt.rejected


def test_the_detector_agrees_with_what_the_policy_wants() -> None:
    for prompt in make_prompts(load_policy(), "train", 300, SHARES, 1):
        wanted = "refusal" if prompt.bank == "forbidden" else "answer"
        assert judge(prompt.chosen).verdict == wanted, prompt
        assert judge(prompt.rejected).verdict != wanted, prompt
        assert judge(prompt.complies).verdict == "answer"


def test_prompts_are_a_function_of_the_seed() -> None:
    policy = load_policy()
    first = make_prompts(policy, "train", 50, SHARES, 7)
    assert first == make_prompts(policy, "train", 50, SHARES, 7) != make_prompts(policy, "train", 50, SHARES, 8)
    assert decode_lines(encode_lines(first)) == first


def test_too_few_words_are_an_error() -> None:
    with pytest.raises(ValueError, match="too few words"):
        make_prompts(load_policy(), "unseen", 5_000, {"zh": 1.0}, 7)


def test_a_language_that_the_tokenizer_spells_out_is_left_out() -> None:
    assert language_shares({"en": 20.0, "zh": 30.0}) == {"en": 0.75, "zh": 0.25}
    assert language_shares({"en": 20.0, "zh": 70.0}) == {"en": 1.0}


def test_every_kind_has_its_rule() -> None:
    policy = load_policy()
    assert set(rules(policy, "en")) >= {"consent", "harm", "deceit", "plain", "prevention"}
    assert all(all(rules(policy, language).values()) for language in policy)
