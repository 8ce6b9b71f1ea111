"""The room's stage."""

from ninthsky.run import Stage

STAGES = (
    Stage(
        "signal.learn",
        "Signals",
        version=1,
        run="ninthsky.signal.learn:run",
        needs=("train.pretrain", "data.tokens"),
        uses=("signal", "seed"),
    ),
)
