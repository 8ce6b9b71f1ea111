from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from ninthsky.run.folder import read_lines
from ninthsky.train.inject import Fault, Injector, flip_bit, struck


def _injector(folder: Path, *faults: Fault, rank: int = 0) -> Injector:
    injector = Injector(list(faults), folder, folder / "events.jsonl")
    injector.rank = rank
    return injector


def test_a_fault_strikes_its_step_attempt_and_rank_only(tmp_path: Path) -> None:
    fault = Fault(0, "nan", 2, 5, attempt=1)
    assert _injector(tmp_path, fault, rank=1).due(5, 1, "nan") is None
    injector = _injector(tmp_path, fault, rank=2)
    assert injector.due(5, 0, "nan") is None
    assert injector.due(4, 1, "nan") is None
    assert injector.due(5, 1, "kill", "freeze") is None
    assert not list(tmp_path.iterdir())
    assert injector.due(5, 1, "nan") == fault


def test_a_fault_strikes_once_in_the_life_of_a_run(tmp_path: Path) -> None:
    fault = Fault(3, "nan", 0, 5)
    assert _injector(tmp_path, fault).due(5, 0, "nan") == fault
    assert _injector(tmp_path, fault).due(5, 0, "nan") is None, "another process of the same run"
    assert [mark.fault for mark in struck(tmp_path)] == [fault]


def test_it_is_told_before_it_strikes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_injector(tmp_path, Fault(0, "kill", 0, 9)).strike, args=(9, 0))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (event,) = read_lines(tmp_path / "events.jsonl")
    assert (event["kind"], event["injected"], event["fault"], event["step"], event["pid"]) == (
        "inject",
        True,
        "kill",
        9,
        process.pid,
    )


def test_a_frozen_process_is_stopped_until_it_is_continued(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_injector(tmp_path, Fault(0, "freeze", 0, 1)).strike, args=(1, 0))
    process.start()
    assert process.pid is not None
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    os.kill(process.pid, signal.SIGCONT)
    process.join()


def test_a_slow_process_works_the_factor_longer(tmp_path: Path) -> None:
    injector = _injector(tmp_path, Fault(0, "slow", 0, 1, factor=3.0))
    injector.drag(10.0)  # not yet slow: nothing to wait for
    injector.strike(1, 0)
    begin = time.thread_time()
    injector.drag(0.02)
    assert time.thread_time() - begin == pytest.approx(0.04, rel=0.3), "its own processor time, which no neighbour changes"


def test_a_bad_card_computes_wrongly_until_its_process_is_replaced(tmp_path: Path) -> None:
    injector = _injector(tmp_path, Fault(0, "bad_card", 1, 4, factor=8.0), rank=1)
    for step, factor in ((3, 1.0), (4, 8.0), (5, 8.0)):
        injector.turn_bad(step, 0)
        assert injector.gradient_factor == factor
    replaced = _injector(tmp_path, Fault(0, "bad_card", 1, 4, factor=8.0), rank=1)
    replaced.turn_bad(4, 0)
    assert replaced.gradient_factor == 1.0


def test_bad_data_are_bad_whoever_reads_them_and_told_once(tmp_path: Path) -> None:
    batch = torch.arange(6, 46).view(2, 20)
    fault = Fault(2, "bad_data", 1, 7)
    one, other = _injector(tmp_path, fault, rank=0), _injector(tmp_path, fault, rank=3)
    spoilt = one.spoil(batch, 7, 1)
    assert not spoilt.equal(batch) and other.spoil(batch, 7, 1).equal(spoilt)
    assert one.spoil(batch, 7, 0) is batch and one.spoil(batch, 8, 1) is batch
    assert [line["fault"] for line in read_lines(tmp_path / "events.jsonl")] == ["bad_data"]


def test_a_rate_is_raised_for_all_ranks_at_one_step(tmp_path: Path) -> None:
    injectors = [_injector(tmp_path, Fault(0, "rate", 0, 5, factor=30.0), rank=rank) for rank in (0, 1)]
    assert [[injector.rate(step) for step in (4, 5, 6)] for injector in injectors] == [[1.0, 30.0, 1.0]] * 2


def test_a_flipped_bit_is_one_bit_of_one_element_that_is_not_zero() -> None:
    for bit in range(32):
        tensors = [torch.zeros(4), torch.randn(3, 5), torch.randn(2)]
        before = [tensor.clone() for tensor in tensors]
        flip_bit(tensors, Fault(bit, "flip_gradient", 0, 0, bit=bit))
        changes = [(new.view(torch.int32) ^ old.view(torch.int32)) for new, old in zip(tensors, before, strict=True)]
        (change,) = [int(word) & 0xFFFFFFFF for words in changes for word in words.flatten() if word]
        assert change == 1 << bit


def test_state_and_gradients_are_struck_once_where_it_was_said(tmp_path: Path) -> None:
    injector = _injector(tmp_path, Fault(0, "flip_weight", 0, 3, bit=2), Fault(1, "flip_gradient", 0, 4, bit=2))
    state, gradients = {"weight": torch.ones(8), "step": torch.tensor(5)}, [torch.ones(8)]
    for step in (3, 4, 5):
        injector.flip_state(step, 0, state)
        injector.arm(step, 0)
        injector.flip_gradient(gradients)
        assert int((state["weight"] != 1).sum()) == 1 and int((gradients[0] != 1).sum()) == (step > 3)


def test_one_kind_of_product_is_wrong_from_then_on(tmp_path: Path) -> None:
    injector = _injector(tmp_path, Fault(0, "wrong_matmul", 0, 2, error=1e-3))
    left, right = torch.randn(4, 5), torch.randn(5, 3)
    right_answer, other = left @ right, torch.randn(7, 5) @ right
    injector.turn_bad(1, 0)
    assert (left @ right).equal(right_answer)
    injector.turn_bad(2, 0)
    assert injector.wrong is not None
    try:
        answers = [left @ right, left @ right]
        assert (torch.ones(7, 5) @ right).equal(torch.ones(7, 5) @ right) and other.shape == (7, 3)
    finally:
        injector.wrong.__exit__(None, None, None)
    for answer in answers:
        assert answer[:, 1:].equal(right_answer[:, 1:])
        torch.testing.assert_close(answer[:, 0], 1.001 * right_answer[:, 0])
