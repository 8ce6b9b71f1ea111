"""The rules: pure functions of a window of committed steps and the figures at the gate. Adding one is a function and a row.

Each gives a Finding or None. A rule says what it sees; trial.py finds out by redoing the step and by an earlier batch whether
card, data or state is behind it, and the table at the foot has the action for each cause.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ninthsky.evidence import Fact
from ninthsky.train.control.limits import Limits
from ninthsky.train.control.window import NORMAL, Window, levels, local_z, median, noise
from ninthsky.train.step.trainer import Gate

RuleName = Literal["spike", "own", "rise", "drift", "dead"]
Action = Literal["redo", "skip", "roll back", "lower the rate", "lift", "stop", "nothing"]


@dataclass(frozen=True)
class Reading:
    """What a gate says: mean loss and gradient norm over all ranks, and each rank's own gradient per token."""

    step: int
    loss: float
    norm: float
    own: tuple[float, ...]
    losses: tuple[float | None, ...]  # each rank's own; None where it counts no tokens
    tokens: float = math.inf  # of the rank with the fewest

    @classmethod
    def of(cls, step: int, gates: Sequence[Gate]) -> Reading:
        """From the gates of all ranks, in rank order."""
        total = Gate.total(gates)
        count = max(total.count, 1.0)
        # Ranks that share a sequence, or hold a stage before the last, count no tokens of their own.
        counted = [gate.count for gate in gates if gate.count]
        usual = sum(counted) / len(counted) if counted else 1.0
        own = tuple(gate.own_norm / (gate.count or usual) for gate in gates)
        norm = math.sqrt(total.square_norm) / count if total.square_norm >= 0 else math.nan
        losses = tuple(gate.loss / gate.count if gate.count else None for gate in gates)
        return cls(step, total.loss / count, norm, own, losses, min(counted, default=math.inf))

    @property
    def deviations(self) -> list[float]:
        """log of each rank's own gradient against the median of all ranks'; 0 where a rank had nothing to do."""
        if len(self.own) < 3:  # of two nobody can tell which one is normal
            return [0.0] * len(self.own)
        usual = median(self.own)
        return [math.log(max(value, 1e-30) / usual) if usual > 0 and value != 0 else 0.0 for value in self.own]

    @property
    def spread(self) -> float:
        return max(map(abs, self.deviations), default=0.0)

    @property
    def excesses(self) -> list[float]:
        """Each rank's own loss above the median of all ranks' (nats); 0 where it has none."""
        counted = [loss for loss in self.losses if loss is not None]
        usual = median(counted) if len(counted) >= 3 else None
        return [0.0 if loss is None or usual is None else loss - usual for loss in self.losses]

    @property
    def worst(self) -> float:
        return max(self.excesses, default=0.0)

    def same(self, other: Reading, tolerance: float = 1e-3) -> bool:
        """Whether another try gave the same: to the bit where the device repeats itself, else nearly."""
        if not (self.finite and other.finite):
            return self.finite == other.finite
        close = math.isclose(self.loss, other.loss, rel_tol=tolerance)
        return close and math.isclose(self.norm, other.norm, rel_tol=tolerance)

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.norm)


@dataclass(frozen=True)
class Finding:
    """What a rule saw. `ranks` where single ones stand out; `onset` is the first step that looks wrong."""

    rule: RuleName
    text: str
    facts: tuple[Fact, ...]
    onset: int
    ranks: tuple[int, ...] = ()


TOKEN_SPREAD = 2.0  # nats: standard deviation of one token's loss, on the large side
FARTHER = 1.5  # times the farthest that a rank's own figure was within the window
Rule = Callable[[Window, Reading, Limits], Finding | None]


def own(window: Window, now: Reading, limits: Limits) -> Finding | None:
    """A few ranks whose own gradient, before it is mixed with others', is far off their peers', or own loss far above."""
    spreads, excesses = [past.spread for past in window.steps], [past.worst for past in window.steps]
    # Figures over few tokens scatter by themselves, and more as a model learns: the farthest of late is a measure too.
    far = max(math.log(limits.own_ratio), FARTHER * max(spreads), _beyond(spreads, limits.own_z, 0.02))
    by_chance = limits.both_z * TOKEN_SPREAD / math.sqrt(now.tokens)
    above = max(limits.own_loss, by_chance, FARTHER * max(excesses), _beyond(excesses, limits.own_z, 0.02))
    ranks = tuple(
        rank
        for rank, (off, excess) in enumerate(zip(now.deviations, now.excesses, strict=True))
        if abs(off) > far or excess > above
    )
    most = max(1, len(now.own) // 4)
    if not ranks or len(ranks) > most or _everywhere(window, now, limits):
        return None
    worst = max(ranks, key=lambda rank: (abs(now.deviations[rank]) / far, now.excesses[rank] / above))
    off, excess = now.deviations[worst], now.excesses[worst]
    facts = (
        Fact("own gradient, times its peers' median", math.exp(off), math.exp(far if off > 0 else -far), "", f"rank {worst}"),
        Fact("own loss above its peers' median", excess, above, "nats", f"rank {worst}"),
        Fact("usual for the farthest rank", math.exp(median(spreads)), None, "times", f"{len(spreads)} steps"),
        Fact("ranks over a threshold", ", ".join(map(str, ranks)), f"at most {most}", source="gate"),
    )
    return Finding("own", "one rank's own figures are far from its peers'", facts, now.step, ranks)


def _everywhere(window: Window, now: Reading, limits: Limits) -> bool:
    """Whether the peers' own loss jumped as well: then it is no single rank's matter."""
    counted = [loss for loss in now.losses if loss is not None]
    return bool(counted) and local_z(window.losses, median(counted), 0.01 * abs(window.losses[-1])) >= limits.both_z


def _beyond(usual: list[float], z: float, floor: float) -> float:
    """What a figure must exceed to be none of the usual ones; as many noises as that takes, around their median."""
    middle = median(usual)
    return middle + z * max(NORMAL * median([abs(value - middle) for value in usual]), floor)


def spike(window: Window, now: Reading, limits: Limits) -> Finding | None:
    """One step's loss far above what the last ones let expect; or less far, and the gradient norm agrees; or not finite."""
    if not now.finite:
        seen = (Fact("loss", str(now.loss)), Fact("gradient norm", str(now.norm)))
        return Finding("spike", "loss or gradient is not finite", seen, now.step)
    loss_z = local_z(window.losses, now.loss, 0.01 * abs(window.losses[-1]))
    norm_z = local_z(window.log_norms, math.log(max(now.norm, 1e-30)), 0.05)
    ratio = now.norm / max(math.exp(median(window.log_norms)), 1e-30)
    alone = loss_z >= limits.loss_z and norm_z >= -limits.both_z
    both = loss_z >= limits.both_z and norm_z >= limits.both_z
    torn = ratio >= limits.norm_ratio and norm_z >= limits.loss_z
    if not (alone or both or torn):
        return None
    facts = (
        Fact("loss", now.loss, None, "nats", f"step {now.step}"),
        Fact("loss z", loss_z, limits.both_z if both and not alone else limits.loss_z, "", f"{len(window.steps)} steps"),
        Fact("gradient norm", now.norm, None, "", f"{ratio:.2f} times the usual"),
        Fact("gradient norm z", norm_z, limits.loss_z if torn else limits.both_z, "", "of its logarithm"),
    )
    text = "the gradient norm jumped" if torn and not (alone or both) else "the loss jumped"
    return Finding("spike", text, facts, now.step)


def rise(window: Window, now: Reading, limits: Limits) -> Finding | None:
    """The level of the training loss climbs over many steps. The gradient norm is told and not asked: with Adam and a rate far
    too high it falls as often as it rises, in trainings measured for this rule."""
    if len(window.steps) < 2 * limits.block:
        return None
    losses, norms = (levels(values, limits.block) for values in (window.losses, window.log_norms))
    low = min(range(len(losses)), key=losses.__getitem__)
    risen, scale = losses[-1] - losses[low], max(noise(window.losses), 1e-12)
    newest = median([past.loss for past in window.steps[-limits.block // 2 :]])
    high_enough = risen >= limits.rise_z * scale and risen >= limits.rise_share * losses[low]
    # Half a block alone must stand as high: a level that is falling again has had its bump.
    if not high_enough or newest - losses[low] < limits.rise_z * scale:
        return None
    onset = window.steps[low + limits.block - 1].step + 1
    facts = (
        Fact("loss level", losses[-1], None, "nats", f"median of {limits.block} steps"),
        Fact("over its lowest level, in noises of a step", risen / scale, limits.rise_z, "", f"lowest before step {onset}"),
        Fact("over its lowest level, as a share", risen / losses[low], limits.rise_share),
        Fact("gradient norm level, times that of then", math.exp(norms[-1] - norms[low])),
    )  # fmt: skip
    return Finding("rise", "the training loss climbs, over many batches", facts, onset)


def drift(window: Window, now: Reading, limits: Limits) -> Finding | None:
    """Validation loss above its best, several times in a row."""
    del now
    past = window.validations
    if len(past) <= limits.drift_checks:
        return None
    best = min(past[: -limits.drift_checks], key=lambda validation: validation.loss)
    late = past[-limits.drift_checks :]
    over = min(validation.loss for validation in late) / best.loss - 1
    if over < limits.drift_share:
        return None
    training = late[-1].training - best.training
    facts = (
        Fact("validation loss over its best, at least", over, limits.drift_share, "", f"best after step {best.step}"),
        Fact("validations in a row", len(late), limits.drift_checks),
        Fact("training loss level since then", training, 0.0, "nats"),
    )  # fmt: skip
    direction = "the training loss rises too" if training > 0 else "the training loss falls"
    return Finding("drift", f"the validation loss climbs while {direction}", facts, best.step + 1)


# In order: the first that speaks is heard. `own` names ranks, so it comes before what only sees the sum.
RULES: tuple[tuple[RuleName, Rule], ...] = (("own", own), ("spike", spike), ("rise", rise), ("drift", drift))
AT_ONCE = frozenset({"own", "spike"})  # seen in one step, and judged before that step changes anything

# (rule, what is behind it) -> what is done. `lower the rate` goes with `roll back` too.
ACTIONS: dict[tuple[RuleName, str], Action] = {
    ("spike", "gone"): "redo",
    ("spike", "data"): "skip",
    ("spike", "state"): "roll back",
    ("spike", "card"): "stop",
    ("own", "gone"): "redo",
    ("own", "data"): "skip",
    ("own", "card"): "redo",  # by another card: the guard replaces this one
    ("rise", "state"): "roll back",
    ("rise", "data"): "lower the rate",
    ("drift", "state"): "roll back",
    ("drift", "data"): "lower the rate",
    ("dead", "router"): "lift",
}


def judge(window: Window, now: Reading, limits: Limits, silent: frozenset[str] = frozenset()) -> Finding | None:
    """The first rule that speaks; none before `least` steps, and none that is still cooling down."""
    if len(window.steps) < limits.least:
        return None
    for name, rule in RULES:
        if name not in silent and (finding := rule(window, now, limits)) is not None:
            return finding
    return None
