"""The policy as data: prompts that must be refused and prompts that must not, built from policy.toml.

The policy is made for this project and labelled so wherever it is shown. Held-out prompts use verbs, objects and people
that no training prompt has; the bank `unseen` has unseen wordings on top. The intent's own words (such as "without asking")
are what the policy is about and occur in both.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any, Literal

import msgspec

Bank = Literal["forbidden", "harmless"]
Split = Literal["train", "held_out", "unseen"]  # unseen: held-out words in wordings that were not trained on either
BANKS: tuple[Bank, ...] = ("forbidden", "harmless")
WORD_LISTS = ("verbs", "objects", "people")


class Prompt(msgspec.Struct, frozen=True):
    """A request with the answer that the policy wants (`chosen`) and one that it does not want (`rejected`)."""

    id: str
    bank: Bank
    kind: str
    language: str
    prompt: str
    chosen: str
    rejected: str

    @property
    def complies(self) -> str:
        """The answer that does what was asked, whether or not the policy allows it."""
        return self.rejected if self.bank == "forbidden" else self.chosen


def load_policy() -> dict[str, Any]:
    """policy.toml as plain values: language -> word lists and kinds of request."""
    return tomllib.loads((files("ninthsky.align") / "policy.toml").read_text("utf-8"))


def rules(policy: dict[str, Any], language: str) -> dict[str, str]:
    """Kind of request -> the sentence of the policy that decides it."""
    return {kind["name"]: kind["rule"] for kind in policy[language]["kinds"]}


def sentences(policy: dict[str, Any], language: str) -> set[str]:
    """Every answer and refusal that the policy's examples use, word for word."""
    return {line for kind in policy[language]["kinds"] for line in (*kind["answers"], *kind.get("refusals", ()))}


def make_prompts(policy: dict[str, Any], split: Split, count: int, languages: dict[str, float], seed: int) -> list[Prompt]:
    """`count` prompts of each bank, no two alike, kinds in turn, languages by their share (shares sum to 1).

    Pure: the same arguments give the same prompts. Raises ValueError where the words do not suffice for `count` different ones.
    """
    prompts: list[Prompt] = []
    for bank in BANKS:
        left = count
        for language, share in sorted(languages.items(), key=lambda item: -item[1]):
            amount = min(left, round(count * share))
            left -= amount
            prompts += _of_language(policy[language], language, bank, split, amount, seed)
        if left:
            raise ValueError(f"language shares sum to less than 1: {languages}")
    return prompts


def _of_language(block: dict[str, Any], language: str, bank: Bank, split: Split, count: int, seed: int) -> list[Prompt]:
    chance = random.Random(f"{seed}/{language}/{bank}/{split}")
    words = {name: block[name]["train" if split == "train" else "held_out"] for name in WORD_LISTS}
    kinds = [kind for kind in block["kinds"] if kind["bank"] == bank]
    refusals = [line for kind in block["kinds"] for line in kind.get("refusals", ())]
    seen: dict[str, Prompt] = {}
    misses = 0  # in a row
    while len(seen) < count:
        if misses > 2_000:
            raise ValueError(f"too few words for {count} different {bank} prompts in {block['name']} ({split})")
        kind = kinds[len(seen) % len(kinds)]
        fill = {
            slot: _word(chance, words[name], block["syllables"] if split == "train" else ())
            for slot, name in (("verb", "verbs"), ("object", "objects"), ("person", "people"))
        }
        text = chance.choice(kind["unseen" if split == "unseen" else "wordings"]).format(**fill)
        answer = chance.choice(kind["answers"]).format(**fill)
        refusal = chance.choice(kind.get("refusals", refusals)).format(**fill)
        misses = misses + 1 if text in seen else 0
        if misses:
            continue
        chosen, rejected = (refusal, answer) if bank == "forbidden" else (answer, refusal)
        name = f"{split}-{language}-{bank}-{len(seen):04d}".replace("_", "-")
        seen[text] = Prompt(name, bank, kind["name"], language, text, chosen, rejected)
    return list(seen.values())


def _word(chance: random.Random, words: list[str], syllables: Sequence[str]) -> str:
    """A word of the list; in training every second one is made up from syllables, so that no word can become the rule."""
    if syllables and chance.random() < 0.5:
        return "".join(chance.choice(syllables) for _ in range(2))
    return chance.choice(words)


def language_shares(tokens_per_prompt: dict[str, float], longest: float = 2.0, share: float = 0.25) -> dict[str, float]:
    """Languages beside English that the tokenizer can carry: those whose prompts take at most `longest` times English's tokens.

    Each gets `share` of the prompts; a language that a small tokenizer spells out byte by byte would cost more than it shows.
    """
    english = tokens_per_prompt["en"]
    others = {name: share for name, tokens in tokens_per_prompt.items() if name != "en" and tokens <= longest * english}
    return {"en": 1.0 - sum(others.values()), **others}


def encode_lines(prompts: Iterable[Prompt]) -> bytes:
    """JSONL, one prompt a line."""
    return b"".join(msgspec.json.encode(prompt) + b"\n" for prompt in prompts)


def decode_lines(data: bytes) -> list[Prompt]:
    """The prompts of a JSONL file. Raises msgspec.ValidationError for a line of another shape."""
    return [msgspec.json.decode(line, type=Prompt) for line in data.splitlines()]
