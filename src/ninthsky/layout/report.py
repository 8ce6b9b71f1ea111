"""What `n9 layout` prints: a ranked table, the best cut's [mesh] block, why others fell, and what faults would cost."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ninthsky.config.load import load_settings, parse_settings
from ninthsky.config.schema import Size
from ninthsky.errors import UserError
from ninthsky.layout.choose import UNITS, Verdict, problem_of, tally
from ninthsky.layout.cluster import CHIPS, measure
from ninthsky.layout.goodput import goodput
from ninthsky.layout.search import Found, Objective, Problem, usable_bytes
from ninthsky.layout.shape import Sizes

# Seconds to name a fault and to train again, from a good fleet's to a bad one's.
REPAIRS = (("10 s", 10.0), ("60 s", 60.0), ("10 min", 600.0), ("1 h", 3600.0))


def problem_from(file: Path | None, size: Size, overrides: dict[str, Any], model: Path | None) -> Problem:
    """The problem that a run.toml, or the dial alone, stands for.

    Raises SettingsError for bad settings and UserError N9-LAY-001 or -002 for an unknown card or an unreadable model file.
    """
    # A cut is what is asked for, so a [mesh] block that no longer fits the asked ranks is no mistake here.
    settings = load_settings(file, overrides) if file else parse_settings(f'size = "{size}"', "--size", overrides)
    assert settings.data.vocab is not None, "size fills in the vocabulary"
    problem = problem_of(settings, settings.data.vocab)
    if model is None:
        return problem
    try:
        config = json.loads(model.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError("N9-LAY-002", f"cannot read the model file: {error}", str(model), "give a config.json") from error
    if not isinstance(config, dict):
        raise UserError("N9-LAY-002", "the model file is no JSON object", str(model), "give a config.json")
    return Problem(Sizes.of_config(config, str(model)), problem.work, problem.cluster)


def _count(number: float) -> str:
    """`1.131 M`, `147.8 B`."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.4g} {unit}"
    return f"{number:.4g}"


def _bytes(number: float) -> str:
    """`5.458 MB`, `57.25 GB`."""
    return _count(number).replace(" k", " kB").replace(" M", " MB").replace(" B", " GB") if number >= 1e3 else f"{number:.0f} B"


def describe(problem: Problem) -> str:
    """The question in three lines."""
    sizes, work, cluster = problem.sizes, problem.work, problem.cluster
    chip = cluster.chip
    return (
        f"model    {_count(sizes.parameters)} weights, {_count(sizes.active)} active; "
        f"{work.batch:,} sequences x {work.sequence:,} = {_count(work.tokens)} tokens per step\n"
        f"cluster  {cluster.hosts:,} hosts x {cluster.ranks_per_host} {chip.name}, {cluster.memory_gb:g} GB each "
        f"({usable_bytes(cluster) / 1e9:.4g} may be filled)\n"
        f"card     {chip.tflops:g} TFLOP/s peak, {chip.achievable:.0%} achievable, {chip.memory_tbs:g} TB/s memory, "
        f"{chip.link_gbs:g} GB/s in a host, {chip.network_gbs:g} GB/s between: {chip.certainty}; {chip.source}"
    )


def print_found(found: Found, top: int, json_lines: bool) -> None:
    """The ranked list of a whole search. Raises UserError N9-LAY-003 when nothing is left."""
    problem, estimate = found.problem, found.estimate
    if not len(found.cuts):
        reasons = {rejection.text: rejection.count for rejection in found.rejected}
        least = next((r for r in found.rejected if r.rule == "memory"), None)
        nearest = f"; the leanest, {least.example.name}, needs {least.figure / 1e9:.1f} GB per rank" if least else ""
        raise UserError(
            "N9-LAY-003", f"no cut: {tally(reasons)}{nearest}", "n9 layout", "more memory, more ranks, or another batch"
        )
    listed = []
    for index in range(min(top, len(found.cuts))):
        cut = found.cuts[index]
        listed.append(
            asdict(cut)
            | {
                "name": cut.name,
                "memory": {name: float(term[index]) for name, term in estimate.memory.items()},
                "seconds": {name: float(term[index]) for name, term in estimate.seconds.items()},
                "egress": {name: float(term[index]) for name, term in estimate.egress.items()},
                "mfu": float(estimate.mfu[index]),
                "tokens_per_second": problem.work.tokens / float(estimate.seconds["total"][index]),
            }
        )
    repairs = [goodput(problem.cluster.ranks, seconds / 2, seconds / 2) for _, seconds in REPAIRS]
    if json_lines:
        for row in listed:
            print(json.dumps({"kind": "cut", **row}))
        for rejection in found.rejected:
            print(json.dumps({"kind": "rejected", **asdict(rejection)}))
        print(
            json.dumps(
                {
                    "kind": "layout",
                    "mesh": found.cuts[0].mesh(),
                    "objective": found.objective,
                    "tried": found.tried,
                    "legal_and_fitting": len(found.cuts),
                    "within_5_percent": found.alike(),
                    "cluster": asdict(problem.cluster),
                    "sizes": asdict(problem.sizes),
                    "work": asdict(problem.work),
                    "goodput": [asdict(repair) for repair in repairs],
                }
            )
        )
        return
    print(describe(problem))
    table = Table(box=box.SIMPLE, padding=(0, 1))
    table.add_column("cut", no_wrap=True)
    for column in ("per rank", "states", "activations", "step", "MFU", "leaves a host", "slowest part"):
        table.add_column(column, overflow="fold")
    for row in listed:
        memory, seconds = row["memory"], row["seconds"]
        parts = sorted((name for name in seconds if name != "total"), key=lambda name: -seconds[name])[:2]
        table.add_row(
            row["name"],
            _bytes(memory["total"]),
            _bytes(memory["weights"] + memory["gradients"] + memory["optimizer"]),
            _bytes(memory["activations"]),
            f"{seconds['total']:.4g} s",
            f"{row['mfu']:.1%}",
            _bytes(row["egress"]["total"]),
            ", ".join(f"{name} {seconds[name] / seconds['total']:.0%}" for name in parts),
        )
    Console(width=148).print(table)
    print(
        f"{found.tried:,} cuts tried, {len(found.cuts):,} legal and fitting, {found.alike()} within 5 % of the best: "
        "the model cannot tell those apart."
    )
    print(f"Ranked by {UNITS[found.objective]}. Rejected, by the first rule each broke:")
    for rejection in found.rejected:
        print(
            f"  {rejection.count:>8,}  {rejection.text} "
            f"(as {rejection.example.name}: {rejection.figure:,.6g} > {rejection.threshold:,.6g})"
        )
    if problem.cluster.chip.name != "cpu":
        hours = repairs[0].mean_seconds_between / 3600
        print(f"\nTime that trains, of {problem.cluster.ranks:,} cards, by how soon a fault is named and mended")
        print(f"(a fault each {hours:.2f} h, the rate of Llama 3, arXiv 2407.21783; state kept in memory each minute):")
        print("  " + "   ".join(f"{name} {repair.effective:.2%}" for (name, _), repair in zip(REPAIRS, repairs, strict=True)))
    print(f"\n{found.cuts[0].block()}")


def print_verdicts(verdicts: list[Verdict], problem: Problem, objective: Objective, top: int, json_lines: bool) -> None:
    """What the run's layout stage decides, cut by cut."""
    if json_lines:
        for verdict in verdicts:
            print(json.dumps({"kind": "verdict", "id": verdict.id, **asdict(verdict)}))
        print(json.dumps({"kind": "layout", "mesh": verdicts[0].cut.mesh(), "objective": objective, "tried": len(verdicts)}))
        return
    print(describe(problem))
    table = Table(box=box.SIMPLE, padding=(0, 1))
    table.add_column("cut", no_wrap=True)
    for column in ("verdict", "per rank", "leaves a host", "step", "why"):
        table.add_column(column, overflow="fold")
    for verdict in verdicts[:top]:
        table.add_row(
            verdict.cut.mesh_name,
            verdict.status,
            _bytes(verdict.memory["total"]),
            _bytes(verdict.egress["total"]),
            f"{verdict.seconds:.4g} s",
            f"{verdict.text} ({verdict.figure:,.6g}, threshold {verdict.threshold:,.6g})",
        )
    Console(width=148).print(table)
    print(f"{len(verdicts)} cuts; ranked by {UNITS[objective]}.\n\n{verdicts[0].cut.block()}")


def print_chips(json_lines: bool) -> None:
    """The table of cards with sources and certainty."""
    if json_lines:
        for chip in CHIPS.values():
            print(json.dumps({"kind": "chip", **asdict(chip)}))
        return
    table = Table(box=box.SIMPLE, padding=(0, 1))
    for column in ("card", "TFLOP/s", "achievable", "GB", "TB/s", "GB/s in host", "GB/s between", "certainty", "source"):
        table.add_column(column, overflow="fold")
    for chip in CHIPS.values():
        numbers = (chip.tflops, chip.achievable, chip.memory_gb, chip.memory_tbs, chip.link_gbs, chip.network_gbs)
        table.add_row(chip.name, *(f"{number:g}" for number in numbers), chip.certainty, chip.source)
    Console(width=148).print(table)


def print_measured(json_lines: bool) -> None:
    """This machine now, beside the fixed stand-in that choices are made with."""
    began = time.perf_counter()
    now, stand_in = measure(), CHIPS["cpu"]
    figures = asdict(now) | {
        "stand_in_gflops": stand_in.tflops * 1e3,
        "stand_in_copy_gbs": stand_in.memory_tbs * 1e3,
        "seconds": time.perf_counter() - began,
    }
    if json_lines:
        print(json.dumps({"kind": "measured", **figures}))
        return
    print(f"fp32 matrix product {now.gflops:.1f} GFLOP/s, copy {now.copy_gbs:.1f} GB/s (numpy on this machine, now)")
    print(f"stand-in 'cpu'      {figures['stand_in_gflops']:.1f} GFLOP/s,      {figures['stand_in_copy_gbs']:.1f} GB/s")
    print("Choices are made with the stand-in, so that one run.toml is cut alike on every machine.")
