"""All cuts of a model over a cluster: which cannot be, why, and how the others rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ninthsky.layout.cluster import Cluster
from ninthsky.layout.cost import Estimate, Fit, estimate
from ninthsky.layout.cut import Bools, Cut, Cuts, Floats, Ints
from ninthsky.layout.memory import RESERVE, micro_batches
from ninthsky.layout.shape import Sizes, Work

Objective = Literal["seconds", "egress"]
Values = NDArray[np.int64] | NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """What is cut, over what, for which step."""

    sizes: Sizes
    work: Work
    cluster: Cluster


@dataclass(frozen=True)
class Rule:
    """A cut is legal where `figure` is at most `threshold`; `text` says what it means that it is not."""

    name: str
    text: str
    figure: Callable[[Cuts, Problem], Values]
    threshold: Callable[[Cuts, Problem], Values | float] = lambda cuts, problem: 0


def _uneven_experts(cuts: Cuts, problem: Problem) -> Values:
    """Left over where experts are cut along their rows: FSDP2 pads an uneven first dimension and refuses any other.

    They are cut along their number only without ep, and over no more shards than there are experts.
    """
    along_rows = (cuts.ep > 1) | (cuts.expert_shards > max(problem.sizes.experts, 1))
    widths = [problem.sizes.dim, *(width for _, width in problem.sizes.expert_sizes)]
    left = np.sum([width % cuts.expert_shards for width in widths], axis=0)
    return np.where(along_rows & bool(problem.sizes.sparse_layers), left, 0)


def _experts_left(cuts: Cuts, problem: Problem) -> Values:
    """Experts left over when those of each size are dealt to ep ranks; without experts there is no ep."""
    if not problem.sizes.sparse_layers:
        return cuts.ep - 1
    return np.asarray(np.sum([number % cuts.ep for number, _ in problem.sizes.expert_sizes], axis=0))


def _ep_left(cuts: Cuts, problem: Problem) -> Values:
    """Ranks left over when ep groups are laid over the data ranks, whole shard groups first."""
    within = np.minimum(cuts.shards % cuts.ep, cuts.ep % cuts.shards)
    return np.maximum(within, (cuts.data * cuts.cp) % cuts.ep)


def _interleaving(cuts: Cuts, problem: Problem) -> Values:
    """Layers left over when virtual stages share them out; without pipeline there is nothing to interleave."""
    left = np.where(cuts.interleave > 1, problem.sizes.layers % (cuts.pp * cuts.interleave), 0)
    return np.where((cuts.pp == 1) & (cuts.interleave > 1), cuts.interleave - 1, left)


# What a mesh has to satisfy however a step is run on it, and what the way of running it adds.
MESH_RULES: tuple[Rule, ...] = (
    Rule("heads", "attention heads do not divide over tp x cp", lambda c, p: p.sizes.heads % (c.tp * c.cp)),
    Rule("kv-heads", "key-value heads do not divide over tp", lambda c, p: p.sizes.kv_heads % c.tp),
    Rule("host", "tensor parallelism leaves the host", lambda c, p: c.tp, lambda c, p: p.cluster.ranks_per_host),
    Rule("experts", "experts do not divide over ep", _experts_left),
    Rule("ep", "ep does not divide over the data ranks", _ep_left),
    Rule("uneven", "experts' rows do not divide over their FSDP shards", _uneven_experts),
    Rule("sequence", "the sequence does not divide over cp", lambda c, p: p.work.sequence % c.cp),
)
STEP_RULES: tuple[Rule, ...] = (
    Rule("layers", "more pipeline stages than layers", lambda c, p: c.pp * c.interleave, lambda c, p: p.sizes.layers),
    Rule("interleave", "layers do not divide over the virtual stages", _interleaving),
    Rule(
        "batch", "the batch does not divide over data ranks x micro-batch", lambda c, p: p.work.batch % (c.data * c.micro_batch)
    ),
    Rule("bubble", "fewer micro-batches than pipeline stages", lambda c, p: c.pp, lambda c, p: micro_batches(c, p.work)),
)
RULES = MESH_RULES + STEP_RULES
MEMORY = (
    "memory",
    "does not fit: bytes per rank over what may be used",
)  # name and text of the last rule, held after estimating

# What is chosen without being asked. A cut that only these forbid is shown with its figures; `[mesh]` in run.toml takes it.
# The trainer deals experts out over tp, where the figures here cut their width, and leaves the vocabulary to FSDP2.
TRAINER_RULES: tuple[Rule, ...] = (
    Rule("trainer-pp", "a pipeline wants [train] micro_batches: name it in [mesh]", lambda c, p: c.pp, lambda c, p: 1),
    Rule("trainer-cp", "sequences are cut where [mesh] says so", lambda c, p: c.cp, lambda c, p: 1),
    Rule("trainer-tp", "matrices are cut where [mesh] says so", lambda c, p: c.tp, lambda c, p: 1),
)


@dataclass(frozen=True)
class Rejection:
    """Cuts that one rule threw out, with the first of them as an example."""

    rule: str
    text: str
    count: int
    example: Cut
    figure: float
    threshold: float


@dataclass(frozen=True)
class Found:
    """The outcome of a search: `cuts` and `estimate` hold legal, fitting cuts, best first."""

    problem: Problem
    objective: Objective
    tried: int
    cuts: Cuts
    estimate: Estimate
    rejected: tuple[Rejection, ...]

    def score(self) -> NDArray[np.float64]:
        return self.estimate.seconds["total"] if self.objective == "seconds" else self.estimate.egress["total"]

    def alike(self, tolerance: float = 0.05) -> int:
        """How many cuts lie within this share of the best: the model cannot tell them apart."""
        score = self.score()
        return int((score <= score[0] * (1 + tolerance)).sum()) if len(score) else 0


def divisors(number: int) -> Ints:
    """Ascending."""
    small = np.arange(1, int(number**0.5) + 1)
    small = small[number % small == 0]
    return np.unique(np.concatenate([small, number // small])).astype(np.int64)


def meshes(problem: Problem) -> Cuts:
    """Every mesh whose product is the number of ranks, within bounds that no rule could pass anyway."""
    sizes, ranks = problem.sizes, problem.cluster.ranks
    all_divisors = divisors(ranks)
    tensor = all_divisors[all_divisors <= min(problem.cluster.ranks_per_host, 16)]
    sequence = all_divisors[all_divisors <= 16]
    stages = all_divisors[all_divisors <= sizes.layers]
    experts = all_divisors[all_divisors <= max(sizes.experts, 1)]
    pp, cp, tp, replicate, ep = (
        axis.ravel() for axis in np.meshgrid(stages, sequence, tensor, all_divisors, experts, indexing="ij")
    )
    used = pp * cp * tp * replicate
    fits = ranks % used == 0
    pp, cp, tp, replicate, ep, used = (axis[fits] for axis in (pp, cp, tp, replicate, ep, used))
    one = np.ones(len(pp), np.int64)
    return Cuts(pp, replicate, ranks // used, ep, cp, tp, one, one, 0 * one, one)


def with_schedules(cuts: Cuts, problem: Problem, micro: tuple[int, ...], interleave: tuple[int, ...]) -> Cuts:
    """Each mesh with every way to run a step on it.

    Freed weights are for meshes without pipeline: there they would be gathered again for every micro-batch of every stage.
    """
    rows, micro_batch, virtual, recompute, reshard = (
        axis.ravel() for axis in np.meshgrid(np.arange(len(cuts)), micro, interleave, (0, 1), (0, 1), indexing="ij")
    )
    sensible = ((virtual == 1) | (cuts.pp[rows] > 1)) & ((reshard == 0) | (cuts.pp[rows] == 1))
    rows, micro_batch, virtual, recompute, reshard = (
        axis[sensible] for axis in (rows, micro_batch, virtual, recompute, reshard)
    )
    base = cuts.take(rows)
    return Cuts(base.pp, base.dp_replicate, base.dp_shard, base.ep, base.cp, base.tp, virtual, micro_batch, recompute, reshard)


@dataclass(frozen=True)
class Broken:
    """The first rule that each cut breaks: its index, or -1; the figure and the threshold there."""

    rule: Ints
    figure: NDArray[np.float64]
    threshold: NDArray[np.float64]

    def counts(self, rules: tuple[Rule, ...]) -> dict[str, int]:
        """Cuts thrown out, by the rule's text."""
        return {rule.text: int((self.rule == index).sum()) for index, rule in enumerate(rules) if (self.rule == index).any()}


def first_broken(cuts: Cuts, problem: Problem, rules: tuple[Rule, ...]) -> Broken:
    """Holds every cut against the rules in their order."""
    which = np.full(len(cuts), -1, np.int64)
    figures, thresholds = np.zeros(len(cuts)), np.zeros(len(cuts))
    for index, rule in enumerate(rules):
        figure = np.asarray(rule.figure(cuts, problem))
        threshold = np.broadcast_to(rule.threshold(cuts, problem), figure.shape)
        out = (which < 0) & (figure > threshold)
        which[out], figures[out], thresholds[out] = index, figure[out], threshold[out]
    return Broken(which, figures, thresholds)


def sift(cuts: Cuts, problem: Problem, rules: tuple[Rule, ...]) -> tuple[Bools, list[Rejection]]:
    """Which cuts pass all rules, and the count and first example that each rule was the first to throw out."""
    broken = first_broken(cuts, problem, rules)
    rejected = []
    for index, rule in enumerate(rules):
        out = np.flatnonzero(broken.rule == index)
        if len(out):
            first = int(out[0])
            rejected.append(
                Rejection(
                    rule.name, rule.text, len(out), cuts[first], float(broken.figure[first]), float(broken.threshold[first])
                )
            )
    return broken.rule < 0, rejected


def usable_bytes(cluster: Cluster) -> float:
    """Memory of a rank that a plan may fill."""
    return (1 - RESERVE) * cluster.memory_gb * 1e9


def search(
    problem: Problem,
    objective: Objective = "seconds",
    fit: Fit | None = None,
    micro: tuple[int, ...] = (1, 2, 4),
    interleave: tuple[int, ...] = (1, 2, 3, 4),
) -> Found:
    """Every legal cut that fits, best first. Ties go to less memory, then to fewer and smaller axes."""
    every = meshes(problem)
    alive, rejected = sift(every, problem, MESH_RULES)
    tried = len(every)
    cuts = with_schedules(every.take(alive), problem, micro, interleave)
    tried += len(cuts) - int(alive.sum())
    alive, more = sift(cuts, problem, STEP_RULES)
    cuts, rejected = cuts.take(alive), rejected + more
    found = estimate(cuts, problem.sizes, problem.work, problem.cluster, fit)
    limit = usable_bytes(problem.cluster)
    total = found.memory["total"]
    fits = total <= limit
    if not fits.all():
        least = int(np.argmin(np.where(fits, np.inf, total)))
        rejected.append(Rejection(*MEMORY, int((~fits).sum()), cuts[least], float(total[least]), limit))
    score = found.seconds["total"] if objective == "seconds" else found.egress["total"]
    order = np.lexsort((cuts.tp * cuts.cp * cuts.pp, total, found.seconds["total"], score))
    order = order[fits[order]]
    return Found(problem, objective, tried, cuts.take(order), _taken(found, order), tuple(rejected))


def _taken(found: Estimate, which: Ints) -> Estimate:
    def taken(terms: dict[str, Floats]) -> dict[str, Floats]:
        return {name: term[which] for name, term in terms.items()}

    return Estimate(taken(found.memory), taken(found.seconds), taken(found.egress), found.mfu[which])
