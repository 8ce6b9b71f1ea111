"""The layout room's stage."""

from __future__ import annotations

from ninthsky.run import Stage

STAGES = (
    Stage(
        "layout",
        "Layout",
        version=1,
        run="ninthsky.layout.run:run",
        uses=("layout", "model", "data.vocab", "train.sequence", "train.batch", "train.precision"),
    ),
)
