"""The whole examination of a device: operators, repeats, speeds, collectives, the golden run; and what follows from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from ninthsky.evidence import UNKNOWN
from ninthsky.train.vet import elementwise, memory, placing, products, reductions, steps
from ninthsky.train.vet.case import Finding, Operator, Probe, Verdict, put
from ninthsky.train.vet.golden import STEPS, GoldenStep, golden_run
from ninthsky.train.vet.repeats import REMEDY, again, load
from ninthsky.train.vet.speed import Speed, speeds

OPERATORS: tuple[Operator, ...] = (
    *memory.OPERATORS, *elementwise.OPERATORS, *reductions.OPERATORS, *products.OPERATORS, *placing.OPERATORS, *steps.OPERATORS,
)  # fmt: skip

SUMMING = {"matmul", "grouped matmul", "softmax", "sum and mean", "index_add", "embedding", "norm"}  # where order could matter
ROUNDS, PASSES = 200, 4  # of the other thread, that repeats under load should meet; times that they are made for it at most
Told = Callable[[str], None]


@dataclass(frozen=True)
class Examination:
    """All verdicts on one device."""

    device: str
    seed: int
    verdicts: tuple[Verdict, ...]
    speeds: tuple[Speed, ...] = ()
    golden: tuple[GoldenStep, ...] = ()

    @property
    def failed(self) -> list[Verdict]:
        """Verdicts that speak against the device."""
        return [verdict for verdict in self.verdicts if verdict.answer == "fail"]


def examine(
    device: torch.device,
    seed: int = 0,
    operators: Sequence[Operator] = OPERATORS,
    times: int = 5,
    golden: int = STEPS,
    size: int = 1024,
    bytes_: int = 64 << 20,
    expected: dict[str, float] | None = None,
    collectives: bool = True,
    told: Told = lambda name: None,
) -> Examination:
    """Puts every question to the device. `told` hears the name of each part before it begins.

    `times` is how often repeats are made (0: none), `golden` the number of steps of the golden run (0: none), `size` the side
    of the matrices whose product is timed (0: no speeds), `bytes_` what copies move.
    """
    verdicts = []
    for operator in operators:
        told(operator.name)
        findings = [put(operator, test, dtype, device, seed) for test in operator.tests for dtype in test.dtypes]
        if times and any(not isinstance(test, Probe) for test in operator.tests):
            findings += again(operator, device, seed, times, loaded=False)
        verdicts.append(verdict_of(operator, findings))
    summing = [operator for operator in operators if operator.name in SUMMING]
    if times and summing:
        told("repeats under load")
        verdicts.append(_under_load(device, summing, seed, 2 * times))
    runs: list[GoldenStep] = []
    if golden:
        for precision in ("fp32", "bf16"):
            told(f"golden run in {precision}")
            verdict, run = _golden(device, precision, seed, golden)
            verdicts.append(verdict)
            runs += run
    if collectives:
        from ninthsky.train.vet.collectives import collective_verdict

        told("collectives")
        verdicts.append(collective_verdict(device))
    measured: list[Speed] = []
    if size:
        told("speeds")
        measured = speeds(device, size, bytes_, expected)
        verdicts.append(_speed_verdict(measured))
    return Examination(str(device), seed, tuple(verdicts), tuple(measured), tuple(runs))


def verdict_of(operator: Operator, findings: Iterable[Finding]) -> Verdict:
    """Fail if any test that counts failed; unknown if none could be put."""
    every = tuple(findings)
    put_ = [finding for finding in every if finding.offered]
    wrong = [finding for finding in put_ if finding.problem]
    absent = tuple(sorted({finding.dtype for finding in every if not finding.offered}))
    if wrong:
        told = wrong[0]
        repeated = all("times the same bits" in finding.case for finding in wrong)
        low_only = all(finding.dtype == "bf16" for finding in wrong) and any(finding.dtype == "fp32" for finding in put_)
        setting = operator.setting or ('train.precision = "fp32"' if low_only and not repeated else "")
        problem = f"{told.case}, {told.dtype}: {told.problem}" + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else "")
        return Verdict(operator.name, "fail", problem, REMEDY if repeated else operator.workaround, "" if repeated else setting,
                       len(put_), not_offered=absent, findings=every)  # fmt: skip
    if not put_:
        return Verdict(operator.name, UNKNOWN, "no test could be put", not_offered=absent, findings=every)  # type: ignore[arg-type]
    largest, mean = (max(getattr(finding, name) for finding in put_) for name in ("largest", "mean"))
    return Verdict(operator.name, "pass", "", tests=len(put_), largest=largest, mean=mean, not_offered=absent, findings=every)


def _under_load(device: torch.device, operators: Sequence[Operator], seed: int, times: int) -> Verdict:
    """The same operators again and again beside a second thread's work."""
    findings: list[Finding] = []
    with load(device) as rounds:
        for _ in range(PASSES):
            findings += [finding for operator in operators for finding in again(operator, device, seed, times, loaded=True)]
            if rounds[0] >= ROUNDS:
                break
    every = Operator("repeats under load", (), (), REMEDY)
    named = [Finding(f.operator, f"{f.operator}, {f.case}", f.dtype, problem=f.problem) for f in findings]
    return verdict_of(every, named)


def _golden(
    device: torch.device, precision: Literal["fp32", "bf16"], seed: int, count: int
) -> tuple[Verdict, list[GoldenStep]]:
    name = f"golden run, {precision}"
    workaround = "see to the operators that fail above; if none does, compare step by step: golden in --json"
    setting = 'train.precision = "fp32"' if precision == "bf16" else ""
    try:
        run = golden_run(device, precision, seed, count)
    except Exception as raised:  # a device that cannot do a step has given its answer
        text = f"{type(raised).__name__}: {str(raised).splitlines()[0][:160] if str(raised) else ''}"
        return Verdict(name, "fail", text, workaround, setting, count), []
    problem = next((step.problem for step in run if step.problem), "")
    if problem:
        return Verdict(name, "fail", problem, workaround, setting, count), run
    share = max(abs(step.loss - step.exact) / step.allowed for step in run)
    return Verdict(name, "pass", "", tests=len(run), largest=share), run


def _speed_verdict(measured: Sequence[Speed]) -> Verdict:
    problem = next((f"{speed.name}: {speed.problem}" for speed in measured if speed.problem), "")
    if problem:
        workaround = "ask the vendor: memory clock, link width (lanes), power limit, another process on the card"
        return Verdict("speeds", "fail", problem, workaround, tests=len(measured))
    if not any(speed.least is not None for speed in measured):
        return Verdict("speeds", UNKNOWN, "no expectation given: --expect 'copy within=1000'", tests=len(measured))  # type: ignore[arg-type]
    return Verdict("speeds", "pass", tests=len(measured))
