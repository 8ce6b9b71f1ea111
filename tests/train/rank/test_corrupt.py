"""A job of four real ranks that meets three silent faults, one after the other, and ends with the faultless weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from ninthsky.train.inject import Fault
from ninthsky.train.job import TrainJob
from tests.train.cut.test_pipeline import faultless
from tests.train.nano import make_job, run_guarded, write_tokens
from tests.train.ranks import on_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
STEPS, EVERY = 28, 10


def twin(rank: int, job: TrainJob) -> str:
    return faultless(job)


def test_silent_faults_are_named_and_undone_to_the_bit(tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path / "tokens")
    faults = [
        Fault(0, "flip_weight", 0, 4, bit=1),  # of an fp32's mantissa: nobody would notice
        Fault(1, "flip_gradient", 1, 7, bit=30),
        Fault(3, "wrong_matmul", 2, 13, error=1e-5),
    ]
    job = make_job(tokens, tmp_path / "job", STEPS, faults, replay_every=EVERY)
    events: list[dict[str, Any]] = []
    result = run_guarded(job, events.append, replay_every=EVERY, slow_ratio=50.0)
    rest, gradient, product = result.faults
    assert all(fault.injected and fault.state == "repaired" for fault in result.faults)
    assert (rest.cause, rest.rank, rest.step, rest.steps_redone) == ("corrupt", 0, 4, 1)
    assert rest.committed_steps_lost == 0 and not rest.replaced_by
    assert (gradient.rank, gradient.step, gradient.committed_steps_lost) == (1, 7, 0)
    assert (product.cause, product.rank, product.step) == ("corrupt", 2, 19), "at the first replay after it began"
    assert product.replaced_by and product.resume_step == 9, "what came after the replay before it is not trusted"
    assert any("first operation that differs: " in str(fact) for fact in product.evidence.facts)
    digests = {said["digest"] for said in result.results.values()}
    assert digests == set(on_ranks(4, twin, job, folder=tmp_path))
