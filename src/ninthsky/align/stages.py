"""The room's stages: the policy as prompts, an assistant that does not know it yet, and the corrected one."""

from ninthsky.run import Stage

STAGES = (
    Stage(
        "align.policy",
        "Policy",
        version=1,
        run="ninthsky.align.steps:policy",
        needs=("data.tokens",),
        uses=("align.prompts", "seed"),
    ),
    Stage(
        "align.sft",
        "Fine-tuning",
        version=1,
        run="ninthsky.align.steps:sft",
        needs=("train.pretrain", "data.tokens", "align.policy"),
        uses=("align.budget", "align.sft_steps", "seed"),
    ),
    Stage(
        "align.dpo",
        "Preferences",
        version=1,
        run="ninthsky.align.steps:dpo",
        needs=("train.pretrain", "data.tokens", "align.policy", "align.sft"),
        uses=("align.budget", "align.dpo_steps", "align.beta", "align.nll_weight", "seed"),
        explain="ninthsky.align.answers:explain",
    ),
)
