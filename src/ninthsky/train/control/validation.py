"""Training text kept apart for validation during the run, so that held-out text stays unseen until the end."""

from __future__ import annotations

import dataclasses

import numpy as np

from ninthsky.train.text.cursor import Cursor, TokenFile


def set_apart(file: TokenFile, share: float) -> tuple[TokenFile, np.ndarray]:
    """-> (what is left to train on, the tokens kept apart): the last `share` of each source and language, or of the whole."""
    total = len(file.tokens)
    parts = file.parts or [{"start": 0, "tokens": total}]
    left, apart, kept = [], [], []
    start = 0
    for part in parts:
        begin, count = part["start"], part["tokens"]
        cut = count - round(count * share)
        left.append(file.tokens[begin : begin + cut])
        apart.append(file.tokens[begin + cut : begin + count])
        kept.append({**part, "start": start, "tokens": cut})
        start += cut
    split = {**file.split, "tokens": start} | ({"parts": kept} if file.parts else {})
    return dataclasses.replace(file, tokens=np.concatenate(left), split=split), np.concatenate(apart)


def validation_cursor(tokens: np.ndarray, sequence: int, batch: int) -> Cursor:
    """Its step 0 is the batch of every validation: the same windows each time, whatever the ranks.

    Raises UserError N9-TRN-001 where too little is kept apart for two windows.
    """
    return Cursor(tokens, sequence, batch, seed=0)
