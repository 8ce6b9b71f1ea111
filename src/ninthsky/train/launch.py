"""From a run's settings to a guarded job on this machine: its ranks, hosts and spares, and what a person sees meanwhile."""

from __future__ import annotations

import math
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from ninthsky.config.schema import Settings
from ninthsky.errors import UserError
from ninthsky.guard.job import HostSpec, Injected, JobResult, JobSpec, Standby, Watch, run_job
from ninthsky.model.shape import Shape
from ninthsky.run import StageContext
from ninthsky.run.folder import read_json, read_lines
from ninthsky.run.progress import Progress
from ninthsky.train.control.limits import Limits
from ninthsky.train.cut.fewer import fewer
from ninthsky.train.cut.mesh import Mesh
from ninthsky.train.cut.schedule import Schedule
from ninthsky.train.inject import Fault, struck
from ninthsky.train.job import TrainJob
from ninthsky.train.speed import GAIN, measure
from ninthsky.train.step.recipe import Precision, Recipe
from ninthsky.train.text.mixture import choose

# Of a budget, the share that goes into steps. The rest is for starting processes, faults, checkpoints and the export.
STEPS_SHARE = 0.6
LEAST_STEPS = 40  # so that each injected fault has steps before and after it
OTHER_JOB_SECONDS = 20.0  # for the processes of a killed run to end before this one takes their place


def plan_job(ctx: StageContext, fixed: dict[str, Any] | None) -> TrainJob:
    """The job that the run's settings describe, without faults; of one step while `fixed` (steps, precision) is not known.

    Raises UserError N9-CFG-013 for a mesh that does not fit the ranks, N9-TRN-006 for a mixture that cannot be.
    """
    settings, train = ctx.settings, ctx.settings.train
    folder = ctx.inputs["data.tokens"] / "tokens"
    index = read_json(folder / "index.json") or {}
    mesh = Mesh.of(settings.mesh if settings.mesh is not None else read_json(ctx.inputs["layout"] / "mesh.json"))
    shape = Shape.of(settings.model, int(index.get("vocab", 0)))
    mesh.check(settings.layout.hosts * settings.layout.ranks_per_host, shape, train.sequence)
    choose(index.get("splits", {}).get("train", {}).get("parts", []), train.mixture)
    precision: Precision = fixed["precision"] if fixed else "fp32"
    assert train.sequence is not None and train.batch is not None and train.lr is not None, "size fills them in"
    assert train.optimizer is not None, "size fills it in"
    least = mesh.data_ranks * train.micro_batches
    if train.batch < least:
        raise UserError(
            "N9-CFG-013",
            f"batch = {train.batch} sequences for {mesh.data_ranks} data-parallel ranks x {train.micro_batches} micro-batches",
            "[train] batch",
            f"batch must be {least} at least",
        )
    Schedule.of(mesh.schedule, mesh.pp, mesh.parts, train.micro_batches)  # raises where there is none
    if train.validate_every and mesh.pp > 1:
        raise UserError(
            "N9-CFG-013", f"validate_every with pp = {mesh.pp}", "[train] validate_every", "leave it out, or take pp = 1"
        )
    recipe = Recipe(
        lr=train.lr,
        weight_decay=train.weight_decay,
        warmup=train.warmup,
        schedule=train.schedule,
        decay=train.decay,
        final=train.final,
        clip=train.clip,
        z_loss=train.z_loss,
        recompute=train.recompute,
        compile=train.compile,
        optimizer=train.optimizer,
        precision=precision,
        micro_batches=train.micro_batches,
    )
    return TrainJob(
        shape=shape,
        recipe=recipe,
        mesh=mesh,
        fewer=fewer(
            mesh, shape, train.sequence, train.batch, train.micro_batches, math.ceil(settings.guard.smallest_share * mesh.ranks)
        ),
        tokens=str(folder.resolve()),
        folder=str(ctx.out.resolve()),
        steps=int(fixed["steps"]) if fixed else 1,
        sequence=train.sequence,
        batch=train.batch,
        seed=settings.seed,
        mixture=dict(train.mixture),
        document_mask=train.document_mask,
        checkpoint_every=train.checkpoint_every,
        control=Limits.of(train.control),
        validate_every=train.validate_every or 0,
        validation=train.validation,
        replicate_every=train.replicate_every,
        replay_every=settings.guard.replay_every,
        digest_parts=settings.guard.digest_parts,
        events=str(ctx.folder.events_path.resolve()),
    )


def decide_length(ctx: StageContext) -> dict[str, Any]:
    """{"steps", "precision"}: given, or from the speed of both precisions on this machine now. Called once in a run's life."""
    train = ctx.settings.train
    if train.steps is not None and train.precision != "auto":
        return {"steps": train.steps, "precision": train.precision}
    wanted = ["fp32", "bf16"] if train.precision == "auto" else [train.precision]
    ctx.say("measuring the speed of a step")
    with tempfile.TemporaryDirectory() as scratch:
        job = msgspec.structs.replace(plan_job(ctx, None), precisions=wanted)
        found = measure(job.save(Path(scratch) / "job.json"), Path(scratch))
    gains = "bf16" in wanted and len(wanted) > 1 and found["cpu_seconds"]["fp32"] > GAIN * found["cpu_seconds"]["bf16"]
    precision = "bf16" if gains or wanted == ["bf16"] else "fp32"
    seconds = found["seconds"][precision]
    steps = train.steps
    if steps is None:
        assert train.budget is not None, "size fills it in where no steps are given"
        steps = max(int(STEPS_SHARE * train.budget / seconds), LEAST_STEPS)
    ctx.say(f"a step takes {seconds * 1e3:.0f} ms in {precision}: {steps} steps, fixed for this run and its twin")
    ctx.event("train.length", steps=steps, precision=precision, measured_seconds=found["seconds"])
    return {"steps": steps, "precision": precision}


def place_faults(settings: Settings, steps: int) -> list[Fault]:
    """The injections with their shares of the run turned into step numbers, never the first or the last two steps."""
    return [
        Fault(
            number=number,
            kind=given.kind,
            rank=given.rank,
            step=min(max(round(given.at * steps), 1), max(steps - 3, 1)),
            attempt=given.attempt,
            factor=given.factor,
            bit=given.bit,
            error=given.error,
        )
        for number, given in enumerate(settings.train.inject)
    ]


def guarded(ctx: StageContext, job: TrainJob, title: str, spares: int) -> JobResult:
    """Runs the job under the guard, on as many simulated hosts as [layout] has, and shows it. Goes on from its checkpoints.

    Each start keeps its own folder guard/start-N, so that faults seen before the run was interrupted stay on record.
    """
    settings = ctx.settings
    path = job.save(ctx.out / "train.json")
    before = {past.fault.number for past in struck(ctx.out)}
    starts = ctx.out / "guard"
    number = 1 + len(list(starts.glob("start-*")))
    hosts = [
        HostSpec(name=f"host-{host}", slots=settings.layout.ranks_per_host, spares=spares)
        for host in range(settings.layout.hosts)
    ]
    spec = JobSpec(
        run_id=_run_id(ctx),
        folder=str((starts / f"start-{number}").resolve()),
        command=[sys.executable, "-m", "ninthsky.train.rank.elastic", str(path.resolve())],
        world=job.mesh.ranks,
        worlds=[mesh.ranks for mesh in job.fewer],
        hosts=hosts,
        env={"OMP_NUM_THREADS": "1"},
        watch=Watch.of(settings.guard),
        injected=[
            Injected(fault.kind, fault.rank, fault.step, fault.attempt)  # type: ignore[arg-type]
            for fault in job.faults
            if fault.number not in before and fault.kind != "rate"  # no card's fault: the guard hears nothing of it
        ],
        events=job.events,
        standby=Standby(address=settings.guard.bind) if settings.guard.standby else None,
    )
    second = " and a second controller" if spec.standby else ""
    ctx.say(f"starting {job.mesh.ranks} ranks and {spares * len(hosts)} spares on {len(hosts)} simulated hosts{second}")
    shown = _Shown(ctx, title, job.steps, Path(job.folder) / "history.jsonl")
    try:
        return _run(spec, shown.event)
    finally:
        shown.close()


def _run(spec: JobSpec, on_event: Callable[[dict[str, Any]], None]) -> JobResult:
    end = time.monotonic() + OTHER_JOB_SECONDS
    while True:
        try:
            return run_job(spec, on_event)
        except UserError as error:
            # What a killed run left ends by itself, but not at once.
            if error.code != "N9-GRD-003" or time.monotonic() > end:
                raise
            time.sleep(0.5)


def _run_id(ctx: StageContext) -> str:
    """The same at each start of this stage in this run, and nobody else's: so what a killed start left is found."""
    place = xxhash.xxh3_64_hexdigest(str(ctx.out.resolve()).encode())[:10]
    name = "".join(letter if letter.isalnum() else "-" for letter in ctx.folder.path.name)[:16]
    return f"{name}-{ctx.stage.name.partition('.')[2]}-{place}"


class _Shown:
    """Keeps the screen while the job runs: steps from its history, faults from its events. One thread talks to the screen."""

    def __init__(self, ctx: StageContext, title: str, steps: int, history: Path) -> None:
        self._ctx, self._title, self._steps, self._history = ctx, title, steps, history
        self._events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._done = max((line["step"] + 1 for line in read_lines(history)), default=0)
        self._offset = history.stat().st_size if history.exists() else 0
        self._bar: Progress | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._show, name="progress", daemon=True)
        self._thread.start()

    def event(self, event: dict[str, Any]) -> None:
        """From the thread that runs the job."""
        self._events.put(event)

    def close(self) -> None:
        """The job is over."""
        self._closing.set()
        self._thread.join()
        if self._bar is not None:
            self._bar.finish()

    def _show(self) -> None:
        while not self._closing.wait(0.2):
            self._look()
        self._look()

    def _look(self) -> None:
        while not self._events.empty():
            self._tell(self._events.get())
        if not self._history.exists():
            return
        with self._history.open("rb") as file:
            file.seek(self._offset)
            for raw in file:
                if not raw.endswith(b"\n"):
                    break
                self._offset += len(raw)
                line = msgspec.json.decode(raw)
                figures = {key: line[key] for key in ("loss", "tokens_per_second") if key in line}
                if self._bar is None:  # its clock begins with the first step, not with the start of the processes
                    self._bar = self._ctx.screen.task(self._title, self._steps - self._done, "steps")
                self._bar.advance(max(0, line["step"] + 1 - self._done), **figures)
                self._done = max(self._done, line["step"] + 1)

    def _tell(self, event: dict[str, Any]) -> None:
        if event["kind"] == "fault.named":
            self._ctx.say(f"{event['fault']} {event['subject']}: {event['verdict']}", "yellow")
        elif event["kind"] == "fault.repaired":
            self._ctx.say(
                f"{event['fault']} repaired: {event['remedy']}; {event['steps_redone']} step redone, "
                f"{event['committed_steps_lost']} committed steps lost",
                "green",
            )
        elif event["kind"] in {"job.shrunk", "job.grown"}:
            verb = event["kind"].partition(".")[2]
            self._ctx.say(f"{verb} from {event['before']} to {event['ranks']} ranks: {event['reason']}", "yellow")
        elif event["kind"] == "fault.advised":
            self._ctx.say(f'{event["fault"]} advice only, [guard] action = "advise": {event["remedy"]}', "yellow")
