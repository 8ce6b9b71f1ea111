"""The training room's stages."""

from __future__ import annotations

from ninthsky.run import Stage

# What a step depends on; where the faults strike and how they are watched comes on top for the run that suffers them.
_USES = (
    "train.budget",
    "train.steps",
    "train.sequence",
    "train.batch",
    "train.micro_batches",
    "train.lr",
    "train.weight_decay",
    "train.warmup",
    "train.schedule",
    "train.decay",
    "train.final",
    "train.mixture",
    "train.clip",
    "train.z_loss",
    "train.compile",
    "train.document_mask",
    "train.optimizer",
    "train.precision",
    "train.checkpoint_every",
    "train.validate_every",
    "train.validation",
    "train.control",
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
        explain="ninthsky.train.control.records:explain",
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
