from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from ninthsky.model import Decoder, Shape
from ninthsky.model.files import save
from ninthsky.serve.engine import Engine

SPECIAL = ("<pad>", "<eos>", "<user>", "<assistant>", "<signal>", "</signal>")
SHAPE = Shape(
    vocab=300, layers=2, dim=32, heads=2, kv_heads=1, experts=4, experts_per_token=2, expert_dim=16, shared_experts=1,
    dense_layers=1, dense_dim=48,
)  # fmt: skip


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export folder as a run leaves it: untrained weights, byte-level tokenizer with the project's special tokens."""
    folder = tmp_path_factory.mktemp("run") / "stages" / "align.dpo" / "export"
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=SHAPE.vocab, special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(["the quick brown fox and the lazy dog", "基站 夜里 睡眠 节能"] * 20, trainer)
    folder.mkdir(parents=True)
    path = folder.parent / "tokenizer.json"
    tokenizer.save(str(path))
    save(Decoder(SHAPE, seed=3), folder, path)
    return folder


@pytest.fixture(scope="session")
def engine(export: Path) -> Engine:
    return Engine(export)
