"""Bounds, verdicts and records, without a device."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from ninthsky.errors import UserError
from ninthsky.evidence import find
from ninthsky.train.vet import report
from ninthsky.train.vet.bounds import Rule, Units, judge
from ninthsky.train.vet.case import Case, Finding, Operator, Probe, Wrong, put
from ninthsky.train.vet.cli import vet
from ninthsky.train.vet.draws import all_of, normal
from ninthsky.train.vet.examine import OPERATORS, Examination, examine, verdict_of
from ninthsky.train.vet.golden import golden_run
from ninthsky.train.vet.speed import speeds

CPU = torch.device("cpu")


def dot(gain: float = 1.0, shift: float = 0.0, dtype: torch.dtype = torch.float32) -> Finding:
    def run(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        exact = x.dtype == torch.float64
        return (x * y).sum(-1) * (1.0 if exact else gain) + (0.0 if exact else shift)

    case = Case(
        "dot", all_of(normal(1000, 8), normal(1000, 8)), run, Rule(9, unbiased=True), dtypes=(dtype,), layouts=("plain",)
    )
    return put(Operator("dot", (), (case,), ""), case, dtype, CPU, 0)


def test_an_answer_within_its_roundings_passes_and_one_beyond_them_fails() -> None:
    good = dot()
    assert not good.problem and 0 < good.largest < 1
    assert "largest error" in dot(gain=1 + 2.0**-17).problem
    assert not dot(dtype=torch.float64).problem


def test_a_bias_far_below_the_largest_error_is_seen_in_the_mean() -> None:
    exact = torch.randn(40_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).abs() + 0.5
    units, rule = Units(torch.float32), Rule(4, unbiased=True)
    fair = judge(exact.float(), exact, exact, units, rule, 4)
    tilted = judge((exact * (1 - 2.0**-25)).float(), exact, exact, units, rule, 4)
    assert fair.good and fair.mean < 1
    assert tilted.largest < 1 < tilted.mean


def test_units() -> None:
    assert Units(torch.float32).own == 2.0**-24 and Units(torch.bfloat16).own == 2.0**-8
    assert Units(torch.bfloat16).inner == 2.0**-24, "16-bit products are summed in fp32"
    one = torch.ones(1, dtype=torch.float64)
    assert float(Units(torch.bfloat16).around(one, one, 100)) == pytest.approx(2.0**-8, rel=0.01)
    assert float(Units(torch.float32).around(one, one, 100)) == pytest.approx(100 * 2.0**-24, rel=1e-4)


@pytest.mark.parametrize(("answer", "word"), [(torch.full((3,), math.nan), "finite"), (torch.ones(2), "shape")])
def test_what_is_no_number_or_of_another_shape_fails(answer: torch.Tensor, word: str) -> None:
    exact = torch.ones(3, dtype=torch.float64)
    error = judge(answer, exact, exact, Units(torch.float32), Rule(1), 1)
    assert not error.good and word in error.note


def raising(error: Exception) -> Probe:
    def run(device: torch.device, dtype: torch.dtype, generator: torch.Generator) -> None:
        raise error

    return Probe("raises", run, (torch.float32, torch.float64))


def test_what_a_device_raises_is_its_answer() -> None:
    operator = Operator("odd", ("odd",), (raising(NotImplementedError("no kernel")),), "do without")
    findings = [put(operator, operator.tests[0], dtype, CPU, 0) for dtype in (torch.float32, torch.float64)]
    verdict = verdict_of(operator, findings)
    assert verdict.answer == "fail" and "no kernel" in verdict.problem and verdict.workaround == "do without"
    assert verdict.not_offered == ("fp64",), "fp64 is not needed to train, so its absence is no fault"
    assert verdict_of(operator, findings[1:]).answer == "unknown"
    broken = put(operator, raising(RuntimeError("device lost")), torch.float64, CPU, 0)
    assert broken.offered and "device lost" in broken.problem, "what is offered and breaks is no absence"
    wrong = put(operator, raising(Wrong("ties")), torch.float32, CPU, 0)
    assert wrong.problem == "ties"


def test_where_bf16_alone_fails_fp32_is_the_setting() -> None:
    operator = Operator("matmul", (), (), "sum in fp32")
    found = [Finding("matmul", "a", "fp32"), Finding("matmul", "a", "bf16", problem="off")]
    assert verdict_of(operator, found).setting == 'train.precision = "fp32"'
    assert verdict_of(operator, [Finding("matmul", "a", "fp32", problem="off")]).setting == ""


def test_the_golden_run_in_fp64_is_the_model() -> None:
    steps = golden_run(CPU, seed=3, count=3)
    assert all(not step.problem for step in steps)
    assert max(abs(step.loss - step.exact) for step in steps) < 2e-6, "the formulas written out are the decoder's"
    assert steps[-1].allowed > steps[0].allowed


def test_speeds_are_judged_by_what_was_expected() -> None:
    good, bad = (speeds(CPU, 32, 1 << 16, {"sum of two": least}) for least in (0.0, 1e9))
    assert all(not speed.problem for speed in good if speed.name == "sum of two")
    assert "expected" in next(speed.problem for speed in bad if speed.name == "sum of two")


def test_report_and_evidence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [operator for operator in OPERATORS if operator.name in ("top k", "sort")]
    found = examine(CPU, operators=asked, times=0, golden=0, size=0, collectives=False)
    odd = verdict_of(Operator("odd one", (), (), "do without"), [Finding("odd one", "a", "fp32", math.inf, 0.0, "ties")])
    both = Examination("cpu", 0, (*found.verdicts, odd))
    report.write(both, tmp_path)
    kept = json.loads((tmp_path / "vet.json").read_text())
    assert kept["failed"] == ["odd one"] and len(kept["verdicts"]) == 3
    record = find((tmp_path / "evidence.jsonl",), "vet-odd-one")
    assert record is not None and record.verdict == "fail" and record.remedy == "do without"

    from ninthsky.road import why

    assert why("vet-top-k", run=str(tmp_path)) == 0
    assert "top k on cpu: pass" in capsys.readouterr().out


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="no folder for the records"):
        vet(device="cpu", only=("sort",), out=tmp_path / "file")
    assert vet(device="cpu", only=("sort", "bincount"), json_=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert [verdict["name"] for verdict in told["verdicts"][:2]] == ["sort", "bincount"]
    assert vet(fault="list") == 0
    assert "topk-repeats" in capsys.readouterr().out
    for wrong in ({"only": ("sorting",)}, {"device": "toaster"}, {"fault": "race"}, {"device": "cpu", "expect": ("fast",)}):
        with pytest.raises(UserError) as error:
            vet(**wrong)
        assert error.value.code == "N9-TRN-020"


@pytest.mark.slow
def test_collectives_of_two_processes() -> None:
    from ninthsky.train.vet.collectives import collective_verdict

    verdict = collective_verdict(CPU, 2)
    assert verdict.answer == "pass", verdict.problem
