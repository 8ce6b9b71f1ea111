"""The stage `layout`: writes candidates.json and mesh.json, and a record for `n9 why layout-...` per candidate."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from ninthsky.evidence import Evidence, Fact
from ninthsky.layout.choose import Verdict, judge, objective_for, problem_of
from ninthsky.layout.search import Objective, Problem, usable_bytes
from ninthsky.run import StageContext

LISTED = 400  # candidates written down; a large cluster has thousands
SHOWN = 24  # rows of the report's table


def run(ctx: StageContext) -> None:
    """Judges every mesh of the run's ranks. Raises UserError N9-LAY-001 (card) or N9-LAY-003 (nothing can be run)."""
    vocab = ctx.settings.data.vocab
    assert vocab is not None, "size fills in the vocabulary"
    problem = problem_of(ctx.settings, vocab)
    objective = objective_for(problem.cluster.chip.name)
    verdicts = judge(problem, objective)
    chosen, listed = verdicts[0], verdicts[:LISTED]
    with ctx.open("candidates.json", rows=len(listed)) as file:
        file.write(
            _json(
                {
                    "objective": objective,
                    "cluster": asdict(problem.cluster),
                    "sizes": asdict(problem.sizes),
                    "parameters": problem.sizes.parameters,
                    "work": asdict(problem.work),
                    "candidates": len(verdicts),
                    "listed": [{"id": verdict.id} | asdict(verdict) for verdict in listed],
                }
            )
        )
    with ctx.open("mesh.json") as file:
        file.write(_json(chosen.cut.mesh()))
    for verdict in listed:
        ctx.evidence(record(verdict, chosen, problem, objective))
    _tell(ctx, verdicts, problem, objective)


def record(verdict: Verdict, chosen: Verdict, problem: Problem, objective: Objective) -> Evidence:
    """What `n9 why layout-...` answers: the rule that decided, then memory, traffic and time beside the chosen cut's."""
    cluster = problem.cluster
    facts = [Fact(verdict.rule, verdict.figure, verdict.threshold, source=verdict.text)]
    facts += [Fact("memory per rank", verdict.memory["total"], usable_bytes(cluster), "bytes", "layout/memory.py")]
    facts += [Fact(f"  of it {name}", value, unit="bytes") for name, value in verdict.memory.items() if name != "total"]
    beside = "layout/traffic.py, beside the chosen cut's"
    facts += [Fact("leaves a host per step", verdict.egress["total"], chosen.egress["total"], "bytes", beside)]
    facts += [
        Fact(
            "step",
            verdict.seconds,
            chosen.seconds,
            "s",
            f"layout/cost.py, card {cluster.chip.name!r} ({cluster.chip.certainty})",
        )
    ]
    wins = verdict is chosen
    ranks = f"{cluster.hosts} x {cluster.ranks_per_host} ranks"
    return Evidence(
        id=verdict.id,
        kind="layout",
        subject=f"{verdict.cut.mesh_name} for {problem.sizes.parameters:,} weights, {ranks}",
        verdict=f"{verdict.status}: {verdict.text}",
        facts=tuple(facts),
        ruled_out=("cuts with pp, cp or tp above 1: the trainer does not run them yet",) if wins else (),
        remedy=verdict.cut.block().replace("\n", "; ").replace("]; ", "] ") if wins else "",
        decided_by=f"exact rules, then fewest {objective}",
    )


def _tell(ctx: StageContext, verdicts: list[Verdict], problem: Problem, objective: Objective) -> None:
    """What the person sees: the block, the table, the limits."""
    chosen, cluster = verdicts[0], problem.cluster
    runnable = [verdict for verdict in verdicts if verdict.status in ("chosen", "lost")]
    ctx.say(
        f"{len(verdicts)} cuts of {problem.sizes.parameters:,} weights over {cluster.ranks} ranks, {len(runnable)} can be run; "
        f"chosen {chosen.cut.mesh_name}: {chosen.text}"
    )
    ctx.say(chosen.cut.block().replace("\n", "  ").replace(" = ", "="), "cyan")
    if ctx.settings.mesh is not None:
        ctx.say("run.toml has its own [mesh], which the trainer takes instead")
    ctx.table(
        "layout",
        f"Cuts over {cluster.hosts} hosts x {cluster.ranks_per_host} ranks",
        ["cut", "verdict", "MB per rank", "of it states", "leaves a host per step, MB", "step, s", "why"],
        [
            [
                verdict.cut.mesh_name,
                verdict.status,
                round(verdict.memory["total"] / 1e6, 2),
                round(sum(verdict.memory[name] for name in ("weights", "gradients", "optimizer")) / 1e6, 2),
                round(verdict.egress["total"] / 1e6, 3),
                round(verdict.seconds, 4),
                verdict.text,
            ]
            for verdict in verdicts[:SHOWN]
        ],
        f"Ranked by {'bytes that leave a host' if objective == 'egress' else 'time'} per step; {len(verdicts)} candidates, "
        f"{min(SHOWN, len(verdicts))} shown. Times are for the card {cluster.chip.name!r}: {cluster.chip.source}.",
    )
    ctx.plot(
        "layout-egress",
        "What leaves a host in one step, by cut",
        [
            {
                "type": "bar",
                "x": [v.cut.mesh_name for v in runnable],
                "y": [v.egress["total"] / 1e6 for v in runnable],
                "name": "MB",
            }
        ],
        {"yaxis": {"title": {"text": "MB per step"}}},
    )
    ctx.summary(
        chosen=chosen.cut.mesh_name,
        candidates=len(verdicts),
        runnable=len(runnable),
        parameters=problem.sizes.parameters,
        memory_per_rank=chosen.memory["total"],
        egress_per_host=chosen.egress["total"],
    )
    if cluster.chip.name == "cpu":
        ctx.limit("Layout: hosts are simulated, so cuts are ranked by bytes between them; the times are a stand-in card's.")
    ctx.limit("Layout: memory per rank counts tensors (states exactly, activations by formula), not the process around them.")


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()
