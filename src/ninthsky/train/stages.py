"""The training room's stages."""

from __future__ import annotations

from ninthsky.run import Stage

# What a step depends on; where the faults strike and how they are watched comes on top for the run that suffers them.
_USES = (
    "train.budget",
    "train.steps",
    "train.sequence",
    "train.batch",
    "train.lr",
    "train.weight_decay",
    "train.warmup",
    "train.clip",
    "train.optimizer",
    "train.precision",
    "train.checkpoint_every",
    "model",
    "mesh",
    "layout",
    "seed",
)

STAGES = (
    Stage(
        "train.pretrain",
        "Pretraining, with faults on the way",
        version=1,
        run="ninthsky.train.pretrain:run",
        needs=("data.tokens", "layout"),
        uses=(*_USES, "train.inject", "guard"),
    ),
    Stage(
        "train.twin",
        "The faultless twin",
        version=1,
        run="ninthsky.train.twin:run",
        needs=("train.pretrain", "data.tokens", "layout"),
        uses=(*_USES, "train.twin"),
    ),
)
