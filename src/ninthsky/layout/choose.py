"""Every cut of a run's own ranks, judged: the one that the trainer takes, and why each other lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ninthsky.config.schema import Settings
from ninthsky.errors import UserError
from ninthsky.layout.cluster import Cluster, chip_named
from ninthsky.layout.cost import estimate
from ninthsky.layout.cut import Cut, Cuts
from ninthsky.layout.search import MEMORY, RULES, TRAINER_RULES, Objective, Problem, first_broken, meshes, usable_bytes
from ninthsky.layout.shape import Sizes, Work

Status = Literal["chosen", "lost", "only by name", "rejected"]
UNITS: dict[Objective, str] = {"egress": "bytes between hosts", "seconds": "seconds per step"}


@dataclass(frozen=True)
class Verdict:
    """One cut: chosen, or the rule that decided against it with its figure and threshold."""

    cut: Cut
    status: Status
    rule: str
    text: str
    figure: float
    threshold: float
    memory: dict[str, float]  # bytes per rank
    seconds: float  # of a step
    egress: dict[str, float]  # bytes leaving one host per step

    @property
    def id(self) -> str:
        return f"layout-{self.cut.mesh_name}"


def problem_of(settings: Settings, vocab: int) -> Problem:
    """The run's model over the run's ranks. Raises UserError N9-LAY-001 for an unknown card."""
    layout, chip = settings.layout, chip_named(settings.layout.chip)
    return Problem(
        Sizes.of(settings.model, vocab),
        Work.of(settings.train, chip.computes_in, chip.name == "cpu"),
        Cluster(layout.hosts, layout.ranks_per_host, chip, layout.memory_gb),
    )


def objective_for(chip: str) -> Objective:
    """Real cards are ranked by the step's time, ranks that share a laptop by the bytes that leave a host.

    Those are exact, while no time on a network that is not there means anything.
    """
    return "egress" if chip == "cpu" else "seconds"


def trainer_schedule(cuts: Cuts, problem: Problem) -> Cuts:
    """Each mesh with the step that `train.pretrain` makes on it.

    A rank's sequences pass all at once, weights are kept between forward and backward, nothing is computed twice.
    Meshes with a pipeline split the batch into as many micro-batches as stages.
    """
    per_rank = np.maximum(1, problem.work.batch // cuts.data)
    micro = np.where(cuts.pp > 1, np.maximum(1, per_rank // cuts.pp), per_rank)
    zero = np.zeros_like(cuts.pp)
    return Cuts(cuts.pp, cuts.dp_replicate, cuts.dp_shard, cuts.ep, cuts.cp, cuts.tp, zero + 1, micro, zero, zero)


def judge(problem: Problem, objective: Objective) -> list[Verdict]:
    """Every mesh with its verdict: the chosen one, then by how near each came.

    Raises UserError N9-LAY-003 when the trainer can run none.
    """
    cuts = trainer_schedule(meshes(problem), problem)
    found = estimate(cuts, problem.sizes, problem.work, problem.cluster)
    score = found.egress["total"] if objective == "egress" else found.seconds["total"]
    limit, total = usable_bytes(problem.cluster), found.memory["total"]
    broken, unsupported = first_broken(cuts, problem, RULES), first_broken(cuts, problem, TRAINER_RULES)
    legal = (broken.rule < 0) & (total <= limit)
    runnable = legal & (unsupported.rule < 0)
    if not runnable.any():
        reasons = broken.counts(RULES) | {MEMORY[1]: int(((broken.rule < 0) & (total > limit)).sum())}
        reasons |= {"legal, but taken only where [mesh] names them": int(legal.sum())}
        raise UserError(
            "N9-LAY-003",
            f"the trainer can run no cut over {problem.cluster.ranks} ranks; " + tally(reasons),
            "[layout]",
            "more memory_gb, other ranks, or a batch that divides over them; `n9 layout FILE` shows all cuts",
        )
    tier = np.where(runnable, 0, np.where(legal, 1, 2))
    # Ties go to less memory, then to the smaller ep, so that the choice is the same everywhere.
    order = np.lexsort((cuts.ep, total, score, tier))
    best = int(order[0])
    rival = float(score[order[1]]) if len(order) > 1 and tier[order[1]] == 0 else float(score[best])

    def reason(index: int) -> tuple[Status, str, str, float, float]:
        if index == best:
            return (
                "chosen",
                objective,
                f"fewest {UNITS[objective]} of the cuts that the trainer runs",
                float(score[best]),
                rival,
            )
        if tier[index] == 0:
            return "lost", objective, f"more {UNITS[objective]} than the chosen cut", float(score[index]), float(score[best])
        if tier[index] == 1:
            rule, source = TRAINER_RULES[unsupported.rule[index]], unsupported
            return "only by name", rule.name, rule.text, float(source.figure[index]), float(source.threshold[index])
        if broken.rule[index] >= 0:
            rule = RULES[broken.rule[index]]
            return "rejected", rule.name, rule.text, float(broken.figure[index]), float(broken.threshold[index])
        return "rejected", *MEMORY, float(total[index]), limit

    return [
        Verdict(
            cuts[index],
            *reason(index),
            memory={name: float(term[index]) for name, term in found.memory.items()},
            seconds=float(found.seconds["total"][index]),
            egress={name: float(term[index]) for name, term in found.egress.items()},
        )
        for index in order.tolist()
    ]


def tally(counts: dict[str, int]) -> str:
    """`most frequent reason: 12, next: 3`, at most four."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])[:4]
    return ", ".join(f"{text}: {count}" for text, count in ordered if count)
