"""`n9 layout`: how to cut a model over a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from ninthsky.config.schema import Size
from ninthsky.errors import OK, UserError

app = App(name="layout", help="How to cut a model over a cluster: memory and step time of each cut.")

Json = Annotated[bool, Parameter(name="--json", negative="")]
Flag = Annotated[bool, Parameter(negative="")]


@app.default
def layout(
    file: Path | None = None,
    *,
    size: Size | None = None,
    model: Path | None = None,
    hosts: int | None = None,
    ranks_per_host: int | None = None,
    chip: str | None = None,
    memory_gb: float | None = None,
    sequence: int | None = None,
    batch: int | None = None,
    rank_by: Literal["seconds", "egress"] | None = None,
    top: int = 8,
    trainer: bool | None = None,
    chips: Flag = False,
    measure: Flag = False,
    json_: Json = False,
) -> int:
    """Rank every cut of a model over a cluster, print the best one's [mesh] block and why the others fell.

    Without anything: the demo's model on the demo's 2 x 2 ranks.

    Parameters
    ----------
    file:
        A run.toml: its model, cluster, sequence and batch. The options below replace single values.
    size:
        The dial (nano, tiny, small, node, cluster) instead of a file.
    model:
        A config.json in Hugging Face layout instead of the dial's model.
    hosts:
        Number of hosts.
    ranks_per_host:
        Cards of one host.
    chip:
        Name of the card; --chips prints the table with sources.
    memory_gb:
        What one rank may use, in 10^9 bytes; the card's memory otherwise.
    sequence:
        Tokens of one sequence.
    batch:
        Sequences per step over all ranks.
    rank_by:
        seconds per step, or egress: bytes that leave a host per step. Chosen by the card otherwise (cpu: egress).
    top:
        Cuts to print.
    trainer:
        What `train.pretrain` can run today and the choice that the run's layout stage makes (the default for "cpu"), or
        with --no-trainer every cut, whether it can be run yet or not (the default for real cards).
    chips:
        Print the table of cards and end.
    measure:
        Print what this machine's own core does, beside the stand-in "cpu".
    """
    from ninthsky.layout import report
    from ninthsky.layout.choose import judge, objective_for
    from ninthsky.layout.cluster import CHIPS, chip_named
    from ninthsky.layout.search import search

    if chips:
        report.print_chips(json_)
        return OK
    if measure:
        report.print_measured(json_)
        return OK
    if file is not None and size is not None:
        raise UserError("N9-CFG-013", "both a file and --size", "n9 layout", "give one; the file has a `size` of its own")
    if chip is not None:
        chip_named(chip)
    overrides: dict[str, Any] = {
        "layout.hosts": hosts,
        "layout.ranks_per_host": ranks_per_host,
        "layout.chip": chip,
        "layout.memory_gb": memory_gb if memory_gb is not None or chip is None else CHIPS[chip].memory_gb,
        "train.sequence": sequence,
        "train.batch": batch,
    }
    problem = report.problem_from(
        file, size or "tiny", {key: value for key, value in overrides.items() if value is not None}, model
    )
    objective = rank_by or objective_for(problem.cluster.chip.name)
    if trainer if trainer is not None else problem.cluster.chip.name == "cpu":
        report.print_verdicts(judge(problem, objective), problem, objective, top, json_)
    else:
        report.print_found(search(problem, objective), top, json_)
    return OK
