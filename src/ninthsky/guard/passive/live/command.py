"""`n9 guard watch`: what it prints, and how it ends."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from ninthsky.errors import OK, UserError
from ninthsky.guard.passive.live.processes import slurm_pids
from ninthsky.guard.passive.live.record import Record
from ninthsky.guard.passive.live.watcher import Watcher, Wish
from ninthsky.guard.watch import line_of

Json = Annotated[bool, Parameter(name="--json", negative="")]


def watch(
    *,
    pid: int | None = None,
    slurm_job: str | None = None,
    logs: Annotated[tuple[Path, ...], Parameter(negative="")] = (),
    exporter: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    kernel_log: str = "auto",
    folder: Path | None = None,
    patience: float = 10.0,
    slow_ratio: float = 1.25,
    json_: Json = False,
) -> int:
    """Follow a running job that knows nothing of us: who was killed, is frozen, holds the others up. Only looks and tells.

    It ends with the job, with status 1 where a fault ended it; Ctrl-C ends the watching only.

    Parameters
    ----------
    pid: int
        Of its launcher on this host (torchrun, mpirun, accelerate ...). For several nodes, one watch on each.
    slurm_job: str
        Or the Slurm job, on one of its nodes.
    logs: Path
        Log files or folders, besides the ranks' standard output and error where those are files.
    exporter: str
        Address of a vendor's exporter, http://127.0.0.1:9400/metrics, or a file.
    kernel_log: str
        auto (/dev/kmsg where it may be read), off, or a file.
    folder: Path
        Where faults and events go; watch-PID by default. `n9 guard faults FOLDER`, `n9 guard serve FOLDER` read it.
    patience: float
        Seconds without any progress until the ranks' stacks are compared.
    slow_ratio: float
        From how many times its peers' work on a rank is told as slow.
    json_: bool
        Events as JSON lines.
    """
    if (pid is None) == (slurm_job is None):
        raise UserError("N9-GRD-050", "which job?", "n9 guard watch", "either --pid PID (of the launcher) or --slurm-job ID")
    if patience < 1 or slow_ratio < 1.05:
        what = f"--patience {patience:g}, --slow-ratio {slow_ratio:g}"
        raise UserError("N9-CFG-012", what, "n9 guard watch", "at least 1 s, and at least 1.05")
    missing = [path for path in logs if not path.exists()]
    if missing:
        raise UserError("N9-GRD-021", f"no such file or folder: {missing[0]}", "--logs", "name logs that are there")
    name = str(pid if pid is not None else slurm_job)
    wish = Wish(
        name=name,
        roots=(lambda: [pid]) if pid is not None else (lambda: slurm_pids(str(slurm_job))),
        folder=folder or Path(f"watch-{name}"),
        logs=tuple(logs),
        exporters=tuple(exporter),
        kernel_log=kernel_log,
        patience=patience,
        slow_ratio=slow_ratio,
    )

    def tell(event: dict[str, Any]) -> None:
        text = json.dumps(event, ensure_ascii=False) if json_ else line_of(event)
        if text:
            print(text, flush=True)

    return asyncio.run(_run(Watcher(wish, Record(wish.folder, tell))))


async def _run(watcher: Watcher) -> int:
    """Ctrl-C and SIGTERM end the watching, never the job."""
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(watcher.run())
    for signal_ in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signal_, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        return OK
