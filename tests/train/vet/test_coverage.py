"""No operator that the model uses goes unexamined."""

from __future__ import annotations

import pytest
import torch

from ninthsky.train.vet.coverage import EXEMPT, plain, unexamined, used_by
from ninthsky.train.vet.examine import OPERATORS
from tests.train.vet.model_steps import every_kind_of_step
from tests.train.vet.names import called


def test_every_operator_that_the_model_uses_has_a_test() -> None:
    used = used_by(lambda: every_kind_of_step(torch.device("cpu")))
    assert {"mm", "_grouped_mm", "topk", "_fused_adamw", "embedding_dense_backward"} <= used, "the recorder saw nothing"
    missing = unexamined(used, OPERATORS)
    assert not missing, f"the model uses {sorted(missing)}: add cases for them in train/vet, and their names to `covers`"


@pytest.mark.slow
def test_what_an_operator_covers_is_called_by_its_tests() -> None:
    for operator in OPERATORS:
        idle = {plain(name) for name in operator.covers} - called(operator)
        assert not idle, f"{operator.name} claims to cover {sorted(idle)}, which no test of it calls"


def test_an_operator_without_a_test_is_told() -> None:
    used = used_by(lambda: torch.special.bessel_j0(torch.ones(3)) + torch.ones(3))
    assert unexamined(used, OPERATORS) == {"special_bessel_j0"}


def test_names() -> None:
    assert plain("aten::add_") == "add"
    assert plain("aten::__and__") == "__and__"
    covered = {plain(name) for operator in OPERATORS for name in operator.covers}
    assert not covered & EXEMPT.keys(), "either examined or exempt"
