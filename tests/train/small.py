"""A model and tokens small enough for tests. The tokens are made: each depends on the two before it, with noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ninthsky.model import Decoder, Shape
from ninthsky.run.folder import write_json
from ninthsky.train.cursor import Cursor

SHAPE = Shape(97, 3, 32, 4, 2, 4, 2, 24, dense_layers=1, dense_dim=48)


def model(seed: int = 0) -> Decoder:
    return Decoder(SHAPE, seed)


def tokens(count: int = 6000, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    ids = rng.integers(6, SHAPE.vocab, count)
    for at in range(2, count):
        if rng.random() < 0.8:
            ids[at] = 6 + (ids[at - 1] * 7 + ids[at - 2]) % (SHAPE.vocab - 6)
    return ids.astype(np.uint16)


def cursor(batch: int = 12, sequence: int = 16) -> Cursor:
    return Cursor(tokens(), sequence=sequence, batch=batch, seed=11)


def write_token_folder(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    splits = {}
    for name, count, seed in (("train", 6000, 0), ("held_out", 1500, 1)):
        ids = tokens(count, seed)
        ids.tofile(folder / f"{name}.bin")
        splits[name] = {"file": f"{name}.bin", "tokens": count, "documents": 1, "by_language": {"made": count}}
    write_json(folder / "index.json", {"format": 1, "dtype": "uint16", "vocab": SHAPE.vocab, "eos": 1, "splits": splits,
                                       "bytes_per_token": 2.5})  # fmt: skip
