"""The data room's rows of a run."""

from __future__ import annotations

from ninthsky.run import Stage

STAGES = (
    Stage(
        "data.pages",
        "Raw pages",
        version=2,
        run="ninthsky.data.pages:run",
        uses=("data.sources", "data.max_pages", "data.languages"),
        files=("data.sources",),
    ),
    Stage(
        "data.corpus",
        "Corpus: extraction, language, quality, duplicates",
        version=3,
        run="ninthsky.data.corpus:run",
        needs=("data.pages",),
        uses=(
            "data.languages",
            "data.page_seconds",
            "data.page_bytes",
            "data.near_duplicate",
            "data.repeat_pages",
            "data.repeat_share",
            "data.decontaminate",
            "data.decontaminate_words",
            "data.decontaminate_characters",
            "data.contaminated",
            "data.mask",
            "data.quality",
            "data.safety",
        ),
        files=("data.safety.block_lists", "data.safety.lexicons", "data.decontaminate"),
        explain="ninthsky.data.why:explain",
    ),
    Stage(
        "data.tokens",
        "Tokens",
        version=3,
        run="ninthsky.data.tokens:run",
        needs=("data.corpus",),
        uses=("data.vocab", "data.vocab_characters", "data.shard_tokens", "data.held_out", "seed"),
    ),
)
