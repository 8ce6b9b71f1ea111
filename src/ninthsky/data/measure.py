"""How well an extracted text matches the true article."""

from __future__ import annotations

import re
from collections import Counter

_TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")


def token_f1(kept: str, truth: str) -> tuple[float, float, float]:
    """Precision, recall and F1 over bags of lower-cased words (CJK: characters). Two empty texts agree: all 1."""
    mine, theirs = Counter(_TOKEN.findall(kept.lower())), Counter(_TOKEN.findall(truth.lower()))
    if not mine and not theirs:
        return 1.0, 1.0, 1.0
    common = sum((mine & theirs).values())
    precision, recall = common / max(sum(mine.values()), 1), common / max(sum(theirs.values()), 1)
    return precision, recall, 2 * precision * recall / max(precision + recall, 1e-9)
