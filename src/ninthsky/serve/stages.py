"""The serve room's stage."""

from __future__ import annotations

from ninthsky.run import Stage

STAGES = (
    Stage(
        "serve.proof",
        "Serve",
        version=1,
        run="ninthsky.serve.proof:run",
        needs=("align.dpo", "data.tokens"),
        uses=("serve.prompt", "serve.max_tokens"),
    ),
)
