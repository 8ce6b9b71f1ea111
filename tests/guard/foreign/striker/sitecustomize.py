"""Strikes a script from within without changing it: STRIKE=KIND:RANK:STEP, in the first start only (STRIKE_ALWAYS: in each).

A sitecustomize of somebody's own, as a cluster may have one: `n9 guard run` has to run it as well.
"""

# mypy: ignore-errors
import os
import sys
import time


def _strike(kind: str, rank: int, step: int) -> None:
    import torch

    backward, calls = torch.Tensor.backward, 0

    def struck(self, *arguments, **options):
        nonlocal calls
        here = calls == step or (kind == "slow" and calls >= step)
        calls += 1
        if not here or os.environ.get("RANK") != str(rank):
            return backward(self, *arguments, **options)
        if kind == "nan":
            self = self * float("nan")
        elif kind == "raise":
            raise ValueError("a mistake in the script")
        elif kind == "disk":
            raise OSError(28, "No space left on device")
        elif kind == "mismatch":
            torch.distributed.all_reduce(torch.ones(77))
        elif kind == "leave":
            os._exit(0)
        elif kind == "slow":
            end = time.thread_time() + 0.03
            while time.thread_time() < end:
                pass
        return backward(self, *arguments, **options)

    torch.Tensor.backward = struck


class _AfterTorch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch.optim":  # torch.Tensor is whole by then
            sys.meta_path.remove(self)
            kind, rank, step = os.environ["STRIKE"].split(":")
            _strike(kind, int(rank), int(step))


if os.environ.get("STRIKE") and (os.environ.get("N9_ATTEMPT", "").endswith("-1") or os.environ.get("STRIKE_ALWAYS")):
    sys.meta_path.insert(0, _AfterTorch())
