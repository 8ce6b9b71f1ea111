"""Control of the learning process: 20 troubles that a run inflicts on itself, 20 quiet runs, and every decision replayed.

    python -m benchmarks.control            # the reported troubles
    python -m benchmarks.control --draw 1000   # one of the draws that thresholds were chosen on: other seeds, places, sizes

Trainings are small and real (a sparse decoder on a made language). Bad cards need ranks: those run under the guard.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from benchmarks.report import publish
from ninthsky.errors import UserError
from ninthsky.evidence import Evidence
from ninthsky.model import Decoder, Shape
from ninthsky.train.control.limits import Limits
from ninthsky.train.control.program import Program
from ninthsky.train.control.records import records
from ninthsky.train.control.steering import Control
from ninthsky.train.inject import Fault
from ninthsky.train.job import TrainJob
from ninthsky.train.step.loop import History, fit
from ninthsky.train.step.loss import next_token_loss
from ninthsky.train.step.recipe import Recipe
from ninthsky.train.step.trainer import Trainer
from ninthsky.train.text.cursor import Cursor

VOCAB, SEQUENCE = 97, 16
# Seeds from which cases are drawn. Rules were made on the first four draws: in the second a rate too high was taken for bad
# data, in the third the chance of a few tokens for one rank's bad data, in the fourth (20 of 20 troubles right) a validation
# loss that rose by 2 % in a quiet run for drift. The reported draw came after that.
TUNING, REPORTED = (1_000, 77_000, 424_200, 515_100), 600_300
EVERY = 25  # steps between checkpoints
VALIDATE = 10
RANK_STEPS = 60


@dataclass(frozen=True)
class Case:
    """One training. `at` and `size` say where and how much; `wanted`: the actions that are right, none for a quiet run."""

    kind: str
    seed: int
    lr: float
    dim: int
    warmup: float
    steps: int = 200
    batch: int = 12
    tokens: int = 12_000
    at: int = 0
    size: float = 0.0
    how: str = ""
    wanted: tuple[str, ...] = ()

    @property
    def recipe(self) -> Recipe:
        return Recipe(lr=self.lr, warmup=self.warmup)


def draw(base: int) -> list[Case]:
    """4 of each kind that one process can have, and 18 quiet runs; place, size and everything else follow from `base`."""
    rng = np.random.default_rng(base)

    def case(kind: str, number: int, **more: Any) -> Case:
        lr, dim = float(np.exp(rng.uniform(np.log(4e-3), np.log(2.5e-2)))), int(rng.choice([24, 32, 40, 48]))
        given = {"lr": lr, "dim": dim, "warmup": float(rng.uniform(0, 0.25)), "batch": int(rng.integers(8, 17)), **more}
        return Case(kind, base + number, **given)

    place = lambda low, high: int(rng.integers(low, high))  # noqa: E731
    cases = []
    for number, how in enumerate(("random", "random", "repeated", "shuffled")):
        cases.append(case("bad data", number, at=place(50, 180), size=float(rng.uniform(0.6, 1)), how=how, wanted=("skip",)))
    for number in range(4):
        size = float(np.exp(rng.uniform(np.log(12), np.log(60))))
        cases.append(case("rate too high", 10 + number, at=place(60, 130), size=size, wanted=("roll back",)))
    for number, how in enumerate(("bias", "bias", "row", "row")):
        size = float(rng.uniform(1, 3))  # of scores between 0 and 1: nothing chooses it any more
        cases.append(case("dead expert", 20 + number, at=place(30, 110), size=size, how=how, wanted=("lift",)))
    for number, how in enumerate(("repeated", "repeated", "noise", "noise")):
        if how == "repeated":
            more = {"tokens": int(rng.integers(400, 900)), "wanted": ("lower the rate",), "lr": float(rng.uniform(8e-3, 2e-2))}
        else:
            more = {"at": place(60, 110), "size": float(rng.uniform(0.12, 0.2)), "wanted": ("roll back",)}
        cases.append(case("drift", 30 + number, how=how, steps=240, **more))
    quiet = [case("quiet", 40 + number) for number in range(17)]
    # A long warm-up into a rate at the edge: the loss has a bump of its own, and mends it.
    return [*cases, *quiet, case("quiet", 59, lr=6e-2, warmup=0.3, how="bump")]


def language(seed: int, count: int) -> np.ndarray:
    """Tokens of which most follow from the one before."""
    rng = np.random.default_rng(seed)
    successors = rng.integers(6, VOCAB, size=(VOCAB, 4))
    tokens = np.empty(count, np.uint16)
    tokens[0] = 6
    for at in range(1, count):
        known = rng.random() < 0.85
        tokens[at] = successors[tokens[at - 1], min(rng.geometric(0.5) - 1, 3)] if known else rng.integers(6, VOCAB)
    return tokens


class Inflicted(Control):
    """A control whose run has a trouble: what the case says is done to the trainer before its step."""

    def __init__(self, case: Case, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.case = case

    def begin(self, trainer: Trainer) -> bool:
        case, passed = self.case, super().begin(trainer)
        if case.kind == "rate too high" and trainer.step == case.at and self.replay is None:
            self.inflict(case.at, case.size)
            return super().begin(trainer)
        if not passed:
            self._disturb(trainer)
        return passed

    @torch.no_grad()
    def _disturb(self, trainer: Trainer) -> None:
        case, step = self.case, trainer.step
        if case.kind == "dead expert" and step == case.at:
            routers = list(trainer.routers.values())
            router, expert = routers[case.seed % len(routers)], case.seed // 2 % 4
            if case.how == "row":
                router.weight[expert] *= 0.05
            router.e_score_correction_bias[expert] -= case.size
        # Until a rule has acted; a twin that follows the same program is disturbed in the same steps.
        until = min((change.step for change in self.program.changes), default=case.steps)
        if case.how == "noise" and case.at <= step < until:
            generator = torch.Generator().manual_seed(step)
            for parameter in trainer.model.parameters():
                parameter.add_(case.size * parameter.std() * torch.randn(parameter.shape, generator=generator))


def batches(case: Case) -> tuple[Callable[[int], torch.Tensor], torch.Tensor]:
    """`batch_at`, with the case's bad data in it, and a batch for validation."""
    tokens = language(case.seed, case.tokens + 1_500)
    cursor = Cursor(tokens[: case.tokens], SEQUENCE, case.batch, case.seed)

    def batch_at(step: int) -> torch.Tensor:
        batch = cursor.read(step)
        if case.kind == "bad data" and step == case.at:
            generator = torch.Generator().manual_seed(case.seed)
            rows = max(1, round(len(batch) * case.size))
            bad = batch[:rows]
            if case.how == "random":
                bad = torch.randint(6, VOCAB, bad.shape, generator=generator)
            elif case.how == "repeated":
                bad = torch.randint(6, VOCAB, (rows, 1), generator=generator).expand_as(bad)
            else:
                bad = bad.flatten()[torch.randperm(bad.numel(), generator=generator)].view_as(bad)
            batch = torch.cat([bad, batch[rows:]])
        return batch

    return batch_at, Cursor(tokens[case.tokens :], SEQUENCE, 48, case.seed).read(0)


class Killed(Exception):
    """Stands for kill -9: the process that trained is gone."""


@dataclass
class Killer:
    """A progress bar that ends the training after so many steps."""

    at: int
    done: float = 0.0

    def advance(self, count: float = 1, **_: Any) -> None:
        self.done += count
        if self.done >= self.at:
            raise Killed

    def note(self, text: str) -> None: ...

    def finish(self) -> None: ...


@dataclass
class Outcome:
    """What became of a case. `resumed`, `twin`: None where that was not tried."""

    kind: str
    seed: int
    wanted: tuple[str, ...]
    fired: list[Evidence]
    right: bool
    over: str = "one process"
    resumed: bool | None = None
    twin: bool | None = None
    seconds: float = 0.0

    def show(self, case: Case | None = None) -> None:
        """One line, as it happens."""
        told = [f"{record.id} {action_of(record)}" for record in self.fired[:4]]
        what = f"at {case.at} size {case.size:.2f} lr {case.lr:.4f} dim {case.dim} {case.how}" if case else self.over
        verdict = "right" if self.right else "WRONG"
        same = f"resumed {self.resumed} twin {self.twin}"
        print(f"{verdict} {self.kind} {self.seed} {what}: {told} {same} {self.seconds:.0f} s", flush=True)


def action_of(record: Evidence) -> str:
    """The action in a record's remedy."""
    words = {
        "step skipped": "skip",
        "rolled back": "roll back",
        "step redone": "redo",
        "its routing": "lift",
        "stopped": "stop",
    }
    return next((action for start, action in words.items() if record.remedy.startswith(start)), "lower the rate")


def train(
    case: Case, folder: Path, progress: Any = None, replay: Program | None = None
) -> tuple[History, Control, list[Evidence]]:
    """One training of the case in `folder`: what it was, what control made of it, and what it told."""
    torch.set_num_threads(1)
    fired: dict[str, Evidence] = {}

    def tell(record: Evidence) -> None:
        fired[record.id] = record

    control = Inflicted(case, Limits(mode="act"), case.recipe, replay=replay, tell=tell)
    shape = Shape(VOCAB, 3, case.dim, 4, 2, 4, 2, 24, dense_layers=1, dense_dim=48)
    batch_at, validation = batches(case)
    history = fit(
        Decoder(shape, case.seed), batch_at, next_token_loss, case.recipe, case.steps, progress, folder,
        checkpoint_every=EVERY, control=control, validation=(VALIDATE, validation),
    )  # fmt: skip
    return history, control, list(fired.values())


def run_case(case: Case) -> Outcome:
    """Trains; then again, killed in the middle and resumed; then, by the program alone, without a rule."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            history, control, fired = train(case, Path(scratch) / "whole")
        except UserError as error:  # a rule stopped it, which is never what is wanted here
            return Outcome(case.kind, case.seed, case.wanted, [], right=False, over=error.what)
        outcome = Outcome(case.kind, case.seed, case.wanted, fired, right=_right(case, fired))
        kill = case.steps // 3 + case.seed * 7 % (case.steps // 2)
        try:
            if case.wanted or case.seed % 4 == 0:  # of quiet runs a few will do
                train(case, Path(scratch) / "killed", Killer(kill))
        except Killed:
            resumed, other, again = train(case, Path(scratch) / "killed")
            late = [record for record in fired if int(record.where["step"]) >= resumed.resumed_from]
            outcome.resumed = resumed.digest == history.digest and other.program == control.program and again == late
        if case.wanted:  # of a quiet run the program is empty
            twin, _, _ = train(case, Path(scratch) / "twin", replay=control.program)
            outcome.twin = twin.digest == history.digest
    outcome.seconds = time.perf_counter() - begin
    return outcome


def _right(case: Case, fired: list[Evidence]) -> bool:
    """A quiet run is left alone; the first thing done about a trouble comes after its onset and is what is wanted."""
    if not case.wanted:
        return not fired
    return bool(fired) and int(fired[0].where["step"]) >= case.at and action_of(fired[0]) in case.wanted


# -- bad cards: over ranks, under the guard ------------------------------------------------------------------------------------


def run_ranks(base: int) -> list[Outcome]:
    """4 bad cards on 4 ranks of 2 hosts, in two trainings that also run quietly: what the weights of the others must equal."""
    from tests.train.nano import make_job, run_guarded, write_tokens

    rng = np.random.default_rng(base + 1)
    outcomes = []
    with tempfile.TemporaryDirectory() as scratch:
        tokens = write_tokens(Path(scratch) / "tokens")
        for number in range(2):
            seed, lr = base + number, float(rng.uniform(4e-3, 1.5e-2))

            def job(name: str, *faults: Fault, seed: int = seed, lr: float = lr) -> TrainJob:
                given = {"recipe": Recipe(lr=lr), "seed": seed, "control": Limits(mode="act"), "export": False}
                return make_job(tokens, Path(scratch) / f"{name}-{seed}", RANK_STEPS, list(faults), **given)

            quiet = run_guarded(job("quiet"), spares=0)
            fired = records(Path(job("quiet").folder))
            outcomes.append(Outcome("quiet", seed, (), fired, right=not fired and not quiet.faults, over="4 ranks"))
            # Too large and too small, either way far beyond what ranks differ by.
            for which, factor in enumerate((float(rng.uniform(6, 60)), float(rng.uniform(0.01, 0.15)))):
                rank, step = int(rng.integers(4)), int(rng.integers(25, RANK_STEPS - 5))
                begin = time.perf_counter()
                result = run_guarded(job(f"card-{which}", Fault(0, "bad_card", rank, step, factor=factor)))
                named = [(fault.cause, fault.rank, fault.state) for fault in result.faults]
                right = named == [("outlier", rank, "repaired")] and "the card" in result.faults[0].evidence.verdict
                equal = result.results[0]["digest"] == quiet.results[0]["digest"]
                case = Outcome("bad card", seed, ("replace the card",), [], right=right, over="4 ranks", twin=equal)
                case.seconds = time.perf_counter() - begin
                outcomes.append(case)
    return outcomes


def main() -> None:
    """Runs one draw and publishes it, where it is the reported one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draw", type=int, default=REPORTED, help="seed of the draw; only the reported one is published")
    parser.add_argument("--kind", help="only this kind, and nothing is published")
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time")
    arguments = parser.parse_args()
    base = arguments.draw
    cases = [case for case in draw(base) if arguments.kind in {None, case.kind}]
    outcomes = []
    with mp.get_context("spawn").Pool(arguments.workers) as pool:
        for case, outcome in zip(cases, pool.imap(run_case, cases), strict=True):
            outcomes.append(outcome)
            outcome.show(case)
    if arguments.kind in {None, "bad card"}:
        outcomes += run_ranks(base)
        for outcome in outcomes[len(cases) :]:
            outcome.show()
    if arguments.kind is None:
        _publish(outcomes, publishing=base == REPORTED)


def _publish(outcomes: list[Outcome], publishing: bool) -> None:
    troubles = [outcome for outcome in outcomes if outcome.wanted]
    quiet = [outcome for outcome in outcomes if not outcome.wanted]
    rows: list[tuple[Any, ...]] = []
    for kind in dict.fromkeys(outcome.kind for outcome in troubles):
        of_kind = [outcome for outcome in troubles if outcome.kind == kind]
        wanted = ", ".join(sorted({action for outcome in of_kind for action in outcome.wanted}))
        rows.append((kind, f"{sum(outcome.right for outcome in of_kind)} of {len(of_kind)}", wanted))
    rows.append(("quiet runs left alone", f"{sum(outcome.right for outcome in quiet)} of {len(quiet)}", "nothing"))
    replayed = [outcome for outcome in outcomes if outcome.resumed is not None]
    twins = [outcome for outcome in outcomes if outcome.twin is not None]
    figures = {
        "control_right": sum(outcome.right for outcome in troubles),
        "control_troubles": len(troubles),
        "control_false_alarms": sum(not outcome.right for outcome in quiet),
        "control_quiet": len(quiet),
        "control_resumed_equal": f"{sum(bool(outcome.resumed) for outcome in replayed)}/{len(replayed)}",
        "control_twin_equal": f"{sum(bool(outcome.twin) for outcome in twins)}/{len(twins)}",
    }
    rows.append(("killed and resumed: same bits, same records", figures["control_resumed_equal"], ""))
    rows.append(("twin that follows the program: same bits", figures["control_twin_equal"], ""))
    if publishing:
        publish("control", rows, figures, ("trouble", "right", "wanted"))
    else:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
