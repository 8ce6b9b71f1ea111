"""Which operators the tests of an operator really call."""

from __future__ import annotations

import torch

from ninthsky.train.vet.case import Operator, Probe, put
from ninthsky.train.vet.coverage import used_by


def called(operator: Operator) -> set[str]:
    """Names as torch's dispatcher sees them, with gradients and, where composite operators stay whole, in inference mode."""
    cpu = torch.device("cpu")

    def work() -> None:
        for test in operator.tests:
            for dtype in test.dtypes:
                put(operator, test, dtype, cpu, 0)
        with torch.inference_mode():
            for test in operator.tests:
                if isinstance(test, Probe):
                    put(operator, test, torch.float32, cpu, 0)
                else:
                    test.run(*[x.float() if x.is_floating_point() else x for x in test.draw(torch.Generator())])

    return used_by(work)
