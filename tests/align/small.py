"""A language model of a few hundred weights and a tokenizer of letters, for tests of losses and stages."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn

from ninthsky.config import Settings
from ninthsky.config.load import parse_settings
from ninthsky.model import Decoder, Shape
from ninthsky.model.files import save

SPECIAL = ("<pad>", "<eos>", "<user>", "<assistant>", "<signal>", "</signal>")


class Bigram(nn.Module):
    """Next token from this one alone, in float64: small enough to be written out by hand."""

    def __init__(self, vocab: int, dim: int = 7, seed: int = 0) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(torch.randn(vocab, dim, generator=draw, dtype=torch.float64))
        self.head = nn.Parameter(torch.randn(vocab, dim, generator=draw, dtype=torch.float64))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table[tokens]

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden @ self.head.T


def letters() -> Tokenizer:
    """Bytes as tokens after the six special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: id for id, token in enumerate((*SPECIAL, *alphabet))}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def settings(text: str) -> Settings:
    return parse_settings('size = "nano"\n' + text, "test.toml")


def upstream(run: Path, prepared: Settings) -> None:
    """What data.tokens and train.pretrain leave behind, as far as these rooms read it: letters and an untrained model."""
    tokens = run / "stages" / "data.tokens" / "tokens"
    tokens.mkdir(parents=True)
    tokenizer = letters()
    tokenizer.save(str(tokens / "tokenizer.json"))
    splits = {}
    for split, words in (("train", 400), ("held_out", 60)):
        ids = np.array(tokenizer.encode("the keeper of the lantern asks. " * words).ids, np.uint16)
        ids.tofile(tokens / f"{split}.bin")
        splits[split] = {"file": f"{split}.bin", "tokens": len(ids), "documents": 1}
    vocab = tokenizer.get_vocab_size()
    index = {"format": 1, "dtype": "uint16", "vocab": vocab, "eos": 1, "splits": splits}
    (tokens / "index.json").write_text(json.dumps(index))
    export = run / "stages" / "train.pretrain" / "export"
    save(Decoder(Shape.of(prepared.model, vocab), seed=1), export, tokens / "tokenizer.json")
    for stage in ("data.tokens", "train.pretrain"):
        (run / "stages" / stage / "manifest.json").write_text(json.dumps({"digest": stage}))
