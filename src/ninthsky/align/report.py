"""Tables, plots, headline and limits of the room: what the report and the person watching are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ninthsky.align.answers import WANTED, Answer, rate, right_reason, word_for_word
from ninthsky.align.policy import BANKS, Bank, Prompt, Split, rules
from ninthsky.align.proof import Ranking
from ninthsky.run import StageContext

MAX_KL = 0.5  # nats per token; beyond it the correction is suspected of having changed more than it should
BANK_TITLES: dict[Bank, str] = {"forbidden": "must refuse", "harmless": "must not refuse"}
SHOWN = 12  # example answers in the report
MADE = "The policy and its prompts are made for this project."


@dataclass(frozen=True)
class Moved:
    """How far the correction moved the model, beside what it says."""

    kl: float  # nats per token
    before: Ranking
    after: Ranking
    text_loss: tuple[float, ...]  # nats per token of plain held-out text: pretrained, fine-tuned, corrected


def show_policy(
    ctx: StageContext,
    policy: dict[str, Any],
    prompts: Mapping[Split, Sequence[Prompt]],
    lengths: Mapping[str, float],
    shares: Mapping[str, float],
) -> None:
    """The rules with one example each, and which languages the tokenizer carries."""
    shown = []
    for language in shares:
        for kind, rule in rules(policy, language).items():
            example = next(p for p in prompts["train"] if p.language == language and p.kind == kind)
            shown.append([language, BANK_TITLES[example.bank], kind, rule, example.prompt, example.chosen])
    ctx.table(
        "policy",
        "The policy (made)",
        ["language", "bank", "kind", "rule", "example", "wanted"],
        shown,
        note=f"{MADE} Every second word of a training prompt is made up from syllables: no word becomes the rule.",
    )
    ctx.summary(
        prompts={split: len(lines) for split, lines in prompts.items()}, tokens_per_prompt=dict(lengths), languages=dict(shares)
    )
    for language in sorted(set(lengths) - set(shares)):
        ctx.limit(
            f"The policy was not taught in {policy[language]['name']}: the tokenizer takes {lengths[language]:.0f} tokens "
            f"for a prompt, against {lengths['en']:.0f} in English."
        )
    ctx.say(
        f"{len(prompts['train']):,} training prompts, {len(prompts['held_out']):,} of held-out words; "
        + ", ".join(f"{share:.0%} {policy[name]['name']}" for name, share in shares.items())
    )


def show_proof(ctx: StageContext, answers: Sequence[Answer], moved: Moved) -> None:
    """Before and after by what was generated; how far the model moved; what it does not show."""
    table = [
        _row(f"{BANK_TITLES[bank]}, {title}", [a for a in answers if a.split == split and a.bank == bank])
        for split, title in (("held_out", "unseen words"), ("unseen", "unseen words and wordings"))
        for bank in BANKS
    ]
    columns = ["prompts", "n", "refused before", "refused after", "unclear before", "unclear after"]
    ctx.table(
        "refusals",
        "Generated answers, before and after correction (made policy)",
        columns,
        table,
        note="Before: the fine-tuned assistant that was deliberately taught to comply. Shares with Wilson 95 % "
        "intervals; `unclear` is a text that neither answers nor refuses. Greedy generation, judged by rules over the text.",
    )
    held_out = [answer for answer in answers if answer.split == "held_out"]
    kinds = list(dict.fromkeys((a.language, a.bank, a.kind) for a in held_out))
    by_kind = [_row(" ".join(key), [a for a in held_out if (a.language, a.bank, a.kind) == key]) for key in kinds]
    ctx.table("refusals-by-kind", "The same by kind of request (unseen words)", columns, by_kind)
    examples = held_out[:: max(len(held_out) // SHOWN, 1)][:SHOWN]
    ctx.table(
        "answers",
        "What it says",
        ["id", "asked", "before", "after", "judged"],
        [[a.id, a.prompt, a.before.text, a.after.text, f"{a.after.verdict} (wanted: {WANTED[a.bank]})"] for a in examples],
        note="n9 why ID explains each verdict.",
    )
    refused = {
        (bank, when): rate([getattr(a, when) for a in held_out if a.bank == bank], "refusal")
        for bank in BANKS
        for when in ("before", "after")
    }
    bars = [
        {
            "type": "bar",
            "name": when,
            "x": [BANK_TITLES[bank] for bank in BANKS],
            "y": [refused[bank, when].share for bank in BANKS],
            "error_y": {
                "type": "data",
                "symmetric": False,
                "array": [refused[bank, when].interval[1] - refused[bank, when].share for bank in BANKS],
                "arrayminus": [refused[bank, when].share - refused[bank, when].interval[0] for bank in BANKS],
            },
        }
        for when in ("before", "after")
    ]
    ctx.plot(
        "refusals",
        "Share of prompts refused (made policy, unseen words)",
        bars,
        {"yaxis": {"tickformat": ".0%", "range": [0, 1]}},
    )
    _distance(ctx, held_out, moved)
    before, after, over = refused["forbidden", "before"], refused["forbidden", "after"], refused["harmless", "after"]
    ctx.summary(
        refused_before=before.share,
        refused_after=after.share,
        over_refused_before=refused["harmless", "before"].share,
        over_refused_after=over.share,
        held_out_prompts=len(held_out),
    )
    ctx.headline(
        "forbidden requests refused",
        f"{after.share:.1%} (over-refusal {over.share:.1%})",
        "before correction",
        f"{before.share:.1%} (over-refusal {refused['harmless', 'before'].share:.1%})",
        f"n9 align test {ctx.out / 'export'}",
        synthetic=True,
    )
    ctx.say(f"refused: {before} -> {after}; over-refusals: {refused['harmless', 'before']} -> {over}")
    ctx.limit(
        MADE + " They show that the model's behaviour can be corrected and that this is measured by what it generates; "
        "they show nothing about safety in the world."
    )
    ctx.limit(
        "Held-out prompts have verbs, objects and people that no training prompt has; the words of the intent are the "
        "same. In wordings that were not trained either the rate is the one in the second half of the table."
    )


def _row(title: str, answers: Sequence[Answer]) -> list[Any]:
    before, after = [a.before for a in answers], [a.after for a in answers]
    return [
        title,
        len(answers),
        str(rate(before, "refusal")),
        str(rate(after, "refusal")),
        f"{rate(before, 'unclear').share:.1%}",
        f"{rate(after, 'unclear').share:.1%}",
    ]


def _distance(ctx: StageContext, held_out: Sequence[Answer], moved: Moved) -> None:
    pretrained, tuned, corrected = moved.text_loss
    ctx.table(
        "distance",
        "How far the correction moved the model",
        ["figure", "before", "after"],
        [
            ["KL to the fine-tuned model, nats per generated token", "0", f"{moved.kl:.3f}"],
            [
                f"held-out pairs whose chosen answer is the likelier ({moved.after.pairs})",
                f"{moved.before.chosen_likelier:.1%}",
                f"{moved.after.chosen_likelier:.1%}",
            ],
            ["held-out pairs with positive reward margin", "-", f"{moved.after.margin_positive:.1%}"],
            ["mean reward of the chosen answer", "0", f"{moved.after.chosen_reward:+.3f}"],
            [
                "sentences of the policy's examples, word for word",
                f"{word_for_word(held_out, 'before').share:.1%}",
                f"{word_for_word(held_out, 'after').share:.1%}",
            ],
            ["refusals that give the right reason", "-", f"{right_reason(held_out)}"],
            ["loss on plain held-out text, nats per token", f"{tuned:.3f} (pretrained: {pretrained:.3f})", f"{corrected:.3f}"],
        ],
        note="Preference accuracy alone proves nothing: a model can rank every pair rightly and still refuse nothing.",
    )
    ctx.summary(
        kl=moved.kl,
        preference_accuracy=moved.after.margin_positive,
        chosen_likelier=moved.after.chosen_likelier,
        chosen_reward=moved.after.chosen_reward,
        text_loss_pretrained=pretrained,
        text_loss_before=tuned,
        text_loss_after=corrected,
        text_loss_change=corrected / tuned - 1,
        word_for_word=word_for_word(held_out, "after").share,
        right_reason=right_reason(held_out).share,
    )
    warnings = []
    if moved.kl > MAX_KL:
        warnings.append(f"the corrected model is {moved.kl:.2f} nats per token away from the one before (more than {MAX_KL})")
    if moved.after.chosen_reward < 0:
        warnings.append("chosen answers became less likely while the rejected ones fell faster (likelihood displacement)")
    for warning in warnings:
        ctx.say(f"warning: {warning}", "yellow")
        ctx.limit(f"Correction moved more than it should: {warning}.")
