"""`n9 guard run`. Imports what it needs when it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def run(
    *command: Annotated[str, Parameter(allow_leading_hyphen=True)],
    job: Path | None = None,
    act: Annotated[bool, Parameter(negative="")] = False,
    restarts: int = 3,
    hang_seconds: float = 2.5,
    stuck_seconds: float = 30.0,
    slow_ratio: float = 1.5,
    hosts: str = "",
    host: str = "",
    bind: str = "127.0.0.1",
    webhook: str = "",
    json_: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Run a training command that knows nothing of us, with the probe in every rank: -- torchrun ... train.py.

    Parameters
    ----------
    command: str
        After --. Its output, exit status and signals pass through. None: ranks come by themselves (docs/guard/scripts.md).
    job: Path
        Where faults, events and logs go; runs/guard-TIME by default.
    act: bool
        End a frozen rank, and start the whole command again after a fault: it goes on from its own checkpoint. Else only tell.
    restarts: int
        How often, at most.
    hang_seconds: float
        Without a heartbeat, or in different collectives, for so long.
    stuck_seconds: float
        Others wait for a rank that merely does not come, for so long: it may save, compile or evaluate.
    slow_ratio: float
        From how many times its peers' own work on a rank is told as slow.
    hosts: str
        NAME:RANKS,NAME:RANKS ... where the command runs on several hosts; `--job` is then a folder that all of them see.
    host: str
        Which of them this is; its own name by default. The first one decides.
    bind: str
        Where the first one listens for the others.
    webhook: str
        Address that is told of faults, in Alertmanager's form.
    json_: bool
        Events as JSON lines, on the error output.
    """
    import time

    from ninthsky.errors import UserError
    from ninthsky.guard.foreign.run import Options, main, parse_hosts
    from ninthsky.guard.spec import Watch

    if restarts < 0 or min(hang_seconds, stuck_seconds) <= 0 or slow_ratio <= 1:
        given = f"restarts {restarts}, hang {hang_seconds:g} s, stuck {stuck_seconds:g} s, slow ratio {slow_ratio:g}"
        what = "restarts: none or more; seconds: over 0; slow ratio: over 1"
        raise UserError("N9-GRD-060", given, "n9 guard run", what)
    watch = Watch(
        action="act" if act else "advise", hang_seconds=hang_seconds, slow_ratio=slow_ratio, webhook=webhook, bind=bind
    )
    folder = job or Path("runs") / time.strftime("guard-%Y%m%d-%H%M%S")
    named, here = parse_hosts(hosts, host)
    return main(command, Options(folder, watch, restarts, stuck_seconds, json_, named, here))
