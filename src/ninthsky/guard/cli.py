"""`n9 guard`: the fault watch by itself. Each command imports what it needs when it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

app = App(name="guard", help="Name the one bad card, and mend the run.")

Json = Annotated[bool, Parameter(name="--json", negative="")]


@app.command
def job(spec: Path, *, json_: Json = False) -> int:
    """Run a guarded job to its end.

    Parameters
    ----------
    spec: Path
        job.json: command, ranks, hosts, and what may be done about faults (docs/guard.md).
    json_: bool
        Events and result as JSON lines.
    """
    import json

    import msgspec

    from ninthsky.guard.job import run_job
    from ninthsky.guard.spec import load_spec
    from ninthsky.guard.watch import line_of

    def show(event: dict[str, object]) -> None:
        text = json.dumps(event, ensure_ascii=False) if json_ else line_of(event)
        if text:
            print(text, flush=True)

    result = run_job(load_spec(spec), show)
    if json_:
        print(msgspec.json.encode(result).decode())
    else:
        print(f"done: generation {result.generation}, {len(result.faults)} faults, {result.seconds:.1f} s")
    return 0


@app.command
def faults(run: Path, *, json_: Json = False) -> int:
    """Faults of a run or of a job's folder: what, where, the evidence, the remedy, and what it cost.

    Parameters
    ----------
    run: Path
        A run folder, or a folder with faults/.
    json_: bool
        One JSON line per fault.
    """
    import msgspec

    from ninthsky.errors import UserError
    from ninthsky.guard.faults import read_faults
    from ninthsky.guard.watch import fault_text

    folders = sorted({path.parent for path in run.glob("**/faults/F-*.json")})
    # A stage gathers the faults of all its starts into its own faults/; what lies deeper is the same, start by start.
    folders = [folder for folder in folders if not any(other.parent in folder.parent.parents for other in folders)]
    if not run.is_dir():
        raise UserError("N9-RUN-001", f"no folder {run}", str(run), "n9 guard faults runs/NAME")
    found = [fault for folder in folders for fault in read_faults(folder)]
    for fault in found:
        print(msgspec.json.encode(fault).decode() if json_ else fault_text(fault))
    if not found and not json_:
        print("no fault")
    return 0


@app.command
def agent(*, job: Path, host: str, keys: Path, controller: str, json_: Json = False) -> int:
    """The agent of one host. Started by `n9 run` and `n9 guard job`, by Slurm or by hand.

    Parameters
    ----------
    job: Path
        job.json.
    host: str
        Which of the job's hosts this is.
    keys: Path
        This host's key file (mode 600).
    controller: str
        ADDRESS:PORT of the controller.
    json_: bool
        Taken for uniformity: the agent prints nothing but errors.
    """
    from ninthsky.guard.agent import main

    address, _, port = controller.rpartition(":")
    return main(job, host, keys, address, int(port))


@app.command
def controller(*, job: Path, keys: Path, port: int = 0, json_: Json = False) -> int:
    """The controller of one job. Killed and started again, it goes on from its journal.

    Parameters
    ----------
    job: Path
        job.json.
    keys: Path
        The controller's key file (mode 600).
    port: int
        Where to listen; 0: as before, or any free one. Written to controller.json.
    json_: bool
        Taken for uniformity: the controller prints nothing but errors.
    """
    from ninthsky.guard.controller import main

    return main(job, keys, port)


@app.command
def drill(*, faults: int = 4, ranks: int = 4, seed: int = 1, json_: Json = False) -> int:
    """Faults on purpose among simulated ranks (real processes, no torch), named and repaired as you watch.

    Parameters
    ----------
    faults: int
        How many; kinds and ranks are drawn by chance.
    ranks: int
        Ranks in all, on two simulated hosts with a spare each; an even number.
    seed: int
        Of the draw.
    json_: bool
        The sheet as one JSON line, and nothing else.
    """
    import time

    import msgspec

    from ninthsky.errors import FAILED, OK, UserError
    from ninthsky.guard.drill import run_drill
    from ninthsky.guard.watch import line_of

    if ranks < 4 or ranks % 2 or faults < 1:
        raise UserError(
            "N9-CFG-012", f"{ranks} ranks, {faults} faults", "n9 guard drill", "ranks: even, 4 at least; faults: 1 at least"
        )

    def show(event: dict[str, object]) -> None:
        text = line_of(event)
        if text and not json_:
            print(text, flush=True)

    begin = time.monotonic()
    sheet = run_drill(faults, ranks // 2, seed, show)
    if json_:
        print(msgspec.json.encode(sheet).decode())
    else:
        print(f"\nsimulated ranks, {time.monotonic() - begin:.0f} s: {sheet.exact} of {sheet.faults} faults named exactly,")
        print(f"{sheet.wrong} wrong, {sheet.committed_steps_lost} committed steps lost")
        for cause, seconds in sheet.named_seconds.items():
            print(f"  {cause:<10} named after {seconds:.2f} s, training again after {sheet.training_seconds[cause]:.2f} s")
    return OK if sheet.exact == sheet.faults and not sheet.wrong else FAILED
