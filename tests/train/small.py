"""A model and tokens small enough for tests.

The tokens are made: most follow from the one before, the rest are low ids oftener than high ones.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ninthsky.model import Decoder, Shape
from ninthsky.run.folder import write_json
from ninthsky.train.text.cursor import Cursor

SHAPE = Shape(97, 3, 32, 4, 2, 4, 2, 24, dense_layers=1, dense_dim=48)


def model(seed: int = 0) -> Decoder:
    return Decoder(SHAPE, seed)


def tokens(count: int = 6000, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    ids = 6 + np.minimum(rng.geometric(0.1, count), SHAPE.vocab - 7)
    for at in np.flatnonzero(rng.random(count) < 0.6)[1:]:
        ids[at] = 6 + (ids[at - 1] * 5) % 23
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
