"""What came out, as figures, tables, plots and one headline; whichever wins."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ninthsky.run import StageContext
from ninthsky.signal.baselines import Score, majority, score
from ninthsky.signal.tasks import Prepared

Hits = NDArray[np.bool_]


@dataclass(frozen=True)
class Outcome:
    """One task: what each arm said to each test row, which rows each rival and the shortcut control got right."""

    data: Prepared
    said: dict[str, list[str]]  # arm -> texts [n]
    rivals: dict[str, Hits]
    control: Hits

    @cached_property
    def arms(self) -> dict[str, Hits]:
        """Arm -> which test rows were answered rightly, letter by letter."""
        right = [self.data.answers[row] for row in self.data.test]
        return {
            arm: np.array([text == wanted for text, wanted in zip(texts, right, strict=True)])
            for arm, texts in self.said.items()
        }

    def scores(self) -> dict[str, Score]:
        """Every line of the table: the two arms, the rivals, majority, shortcut control."""
        hits = {
            "decoder, from the checkpoint": self.arms["checkpoint"],
            "decoder, from scratch": self.arms["scratch"],
            **self.rivals,
        }
        found = {name: score(right, self.data) for name, right in hits.items()}
        return found | {"majority": majority(self.data), "shortcut control": score(self.control, self.data)}

    def outside(self, arm: str) -> int:
        """Answers that are none of the task's classes. They count as wrong."""
        return sum(text not in self.data.rows.classes for text in self.said[arm])

    @property
    def best_rival(self) -> str:
        """The rival with the highest test accuracy: chosen on the test rows, which favours the rivals."""
        return max(self.rivals, key=lambda name: float(self.rivals[name].mean()))

    def figures(self) -> dict[str, Any]:
        """For results.json."""
        task = self.data.task
        found: dict[str, Any] = {
            "origin": task.origin,
            "split_by": task.split_by,
            "classes": list(self.data.rows.classes),
            "train": len(self.data.train),
            "test": len(self.data.test),
            "scores": {name: asdict(one) for name, one in self.scores().items()},
            "best_rival": self.best_rival,
            "answers_outside_classes": {arm: self.outside(arm) for arm in self.said},
        }
        if self.data.rows.snr_db is not None:
            found["accuracy_by_snr_db"] = {name: self.by_snr(hits) for name, hits in self.lines_by_snr().items()}
        return found

    def lines_by_snr(self) -> dict[str, Hits]:
        return {
            "decoder, from the checkpoint": self.arms["checkpoint"],
            "decoder, from scratch": self.arms["scratch"],
            self.best_rival: self.rivals[self.best_rival],
        }

    def by_snr(self, hits: Hits) -> dict[str, float]:
        """SNR in dB -> accuracy of the test rows with it."""
        assert self.data.rows.snr_db is not None
        ratios = self.data.rows.snr_db[self.data.test]
        return {f"{ratio:g}": float(hits[ratios == ratio].mean()) for ratio in np.unique(ratios)}

    def lines(self) -> list[bytes]:
        """answers.jsonl: every test row with what was said."""
        return [
            (
                json.dumps(
                    {
                        "task": self.data.task.name,
                        "row": int(row),
                        "recording": self.data.rows.signals[row].context.recording,
                        "truth": self.data.answers[row],
                        **{arm: texts[place] for arm, texts in self.said.items()},
                    },
                    sort_keys=True,
                )
                + "\n"
            ).encode()
            for place, row in enumerate(self.data.test)
        ]


def show(ctx: StageContext, outcomes: list[Outcome], losses: dict[str, list[float]], steps: int) -> None:
    """Summary, tables, plots, headline, limits."""
    parts, rival_parts, verdicts = [], [], []
    for outcome in outcomes:
        task, scores = outcome.data.task, outcome.scores()
        label = f"{task.title}, {task.origin}"
        ctx.table(
            f"signal-{task.name}",
            f"Accuracy: {label}",
            ["who", "accuracy", "95 % interval", "balanced", "rows", "recordings"],
            [
                [name, f"{one.accuracy:.1%}", f"{one.low:.1%} to {one.high:.1%}", f"{one.balanced:.1%}", one.n, one.recordings]
                for name, one in scores.items()
            ],
            note=f"Split by {task.split_by}. Answers are generated text and right only letter by letter; "
            f"{outcome.outside('checkpoint')} of {len(outcome.data.test)} were no class. Shortcut control: a random forest "
            "that sees power and mean alone; what it reaches can be had without reading the signal.",
        )
        own, scratch, rival = (
            scores["decoder, from the checkpoint"],
            scores["decoder, from scratch"],
            scores[outcome.best_rival],
        )
        parts.append(f"{own.accuracy:.1%} {task.name}")
        rival_parts.append(f"{rival.accuracy:.1%} {task.name}")
        verdicts.append(verdict(outcome))
        ctx.say(f"{label}: " + verdicts[-1])
        ctx.summary(
            **{
                f"{task.name}_checkpoint": own.accuracy,
                f"{task.name}_scratch": scratch.accuracy,
                f"{task.name}_rival": rival.accuracy,
                f"{task.name}_shortcut": scores["shortcut control"].accuracy,
            }
        )
        ctx.limit(task.limit)
        if outcome.data.rows.snr_db is not None:
            _plot_snr(ctx, outcome, label)
    ctx.plot(
        "signal-loss",
        "Signals: loss of the answers",
        [
            {
                "type": "scatter",
                "mode": "lines",
                "name": f"from {'the checkpoint' if arm == 'checkpoint' else 'scratch'}",
                "x": list(range(1, steps + 1)),
                "y": values,
            }
            for arm, values in losses.items()
        ],
        {"xaxis": {"title": "step"}, "yaxis": {"title": "nats/token", "type": "log"}},
        note="Tasks take turns, step by step.",
    )
    ctx.summary(signal_steps=steps, signal_verdicts=verdicts)
    ctx.headline(
        "one decoder reads signals",
        ", ".join(parts),
        "best classical baseline",
        ", ".join(rival_parts),
        "n9 signal answer digits",
        synthetic=any(outcome.data.task.origin == "synthetic" for outcome in outcomes),
    )
    ctx.limit(
        f"Signals: one seed, {steps} steps for each arm: the difference between checkpoint and scratch may be chance where the "
        "intervals overlap."
    )


def verdict(outcome: Outcome) -> str:
    """Who won, in a sentence, with no favour."""
    scores = outcome.scores()
    own, scratch, rival = (scores["decoder, from the checkpoint"], scores["decoder, from scratch"], scores[outcome.best_rival])

    def against(other: Score) -> str:
        if own.low > other.high:
            return "above"
        return "below" if own.high < other.low else "not to be told from"

    return (
        f"decoder from the checkpoint {own.accuracy:.1%}, {against(scratch)} the same from scratch ({scratch.accuracy:.1%}), "
        f"{against(rival)} {outcome.best_rival} ({rival.accuracy:.1%})"
    )


def _plot_snr(ctx: StageContext, outcome: Outcome, label: str) -> None:
    traces = []
    for name, hits in outcome.lines_by_snr().items():
        found = outcome.by_snr(hits)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": name,
                "x": [float(ratio) for ratio in found],
                "y": list(found.values()),
            }
        )
    ctx.plot(
        f"signal-{outcome.data.task.name}-snr",
        f"Accuracy by signal-to-noise ratio: {label}",
        traces,
        {"xaxis": {"title": "SNR per sample, dB"}, "yaxis": {"tickformat": ".0%", "range": [0, 1]}},
    )
