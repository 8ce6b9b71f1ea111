"""A wait that only stacks can tell: named after a suspicion that later glances confirm, and not by chance."""

from __future__ import annotations

import numpy as np
import pytest

from ninthsky.guard.passive.live.glances import JUDGED, OFTEN, SELDOM, SUSPECT, Glances
from ninthsky.guard.passive.live.stacks import Frame, Stack, Stacks

FORWARD = Stack((Frame("forward", "model.py", 3),))
BACKWARD = Stack((Frame("_engine_run_backward", "torch/autograd/graph.py", 9),))
LOADER = Stack((Frame("get", "queue.py", 171), Frame("__next__", "torch/utils/data/dataloader.py", 7)))


def run(waits: list[float], loads: list[float], count: int, seed: int = 0) -> list[tuple[int, ...]]:
    """Ranks named in `count` glances; `waits`: share in which a rank waits in backward, `loads`: for its loader."""
    rng = np.random.default_rng(seed)
    glances = Glances(tuple(range(len(waits))))
    now, found = 0.0, []
    for _ in range(count):
        now = max(now, glances.due)
        draws = [rng.choice(3, p=[wait, load, 1 - wait - load]) for wait, load in zip(waits, loads, strict=True)]
        stacks = {rank: (BACKWARD, LOADER, FORWARD)[draw] for rank, draw in enumerate(draws)}
        verdict = glances.take(Stacks(now, stacks, active=frozenset(rank for rank, draw in enumerate(draws) if draw == 2)))
        found += [verdict.ranks] if verdict is not None else []
    return found


def test_the_rank_that_waits_for_its_loader_is_named_with_the_place() -> None:
    assert run([0.7, 0.7, 0.05, 0.7], [0.0, 0.0, 0.7, 0.0], SUSPECT + JUDGED) == [(2,)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("waits", "loads"), [([0.5] * 4, [0.2] * 4), ([0.05] * 4, [0.9] * 4), ([0.6] * 4, [0.0] * 4)])
def test_nobody_is_named_where_all_wait_alike(waits: list[float], loads: list[float], seed: int) -> None:
    assert run(waits, loads, 300, seed) == []


def test_glances_come_seldom_until_there_is_a_suspicion() -> None:
    glances = Glances((0, 1, 2))
    odd = Stacks(100.0, {0: BACKWARD, 1: LOADER, 2: BACKWARD})
    for _ in range(SUSPECT - 1):
        glances.take(odd)
        assert glances.due == 100.0 + SELDOM
    glances.take(odd)
    assert glances.due == 100.0 + OFTEN
    glances.forget(200.0)
    assert glances.due == 200.0 + SELDOM
