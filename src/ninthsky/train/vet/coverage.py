"""Which of torch's operators the model and the trainer use, so that none goes unexamined."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from ninthsky.train.vet.case import Operator

# What runs on the host, or looks at no byte: why no case is needed.
EXEMPT = {
    "lift_fresh": "a constant of the host",
    "resolve_conj": "no complex numbers",
    "resolve_neg": "no complex numbers",
    "numpy_T": "a view",
    "_has_compatible_shallow_copy_type": "looks at types",
    "is_same_size": "looks at sizes",
    "sym_size": "looks at sizes",
    "sym_numel": "looks at sizes",
    "record_stream": "bookkeeping of the allocator",
    "_record_function_enter_new": "the profiler",
    "_record_function_exit": "the profiler",
}


class Recorder(TorchDispatchMode):
    """Within it, `used` collects the names of all operators that reach a device."""

    def __init__(self) -> None:
        super().__init__()
        self.used: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.used.add(plain(func._schema.name))
        return func(*args, **(kwargs or {}))


def plain(name: str) -> str:
    """`aten::add_` -> `add`: without name space and the mark of what works in place."""
    bare = name.split("::")[-1]
    return bare if bare.startswith("__") else bare.rstrip("_")


def used_by(work: Callable[[], object]) -> set[str]:
    """Names of the operators that `work` calls."""
    with Recorder() as recorder:
        work()
    return recorder.used


def unexamined(used: Iterable[str], operators: Iterable[Operator]) -> set[str]:
    """Those among `used` that no operator's tests cover."""
    covered = {plain(name) for operator in operators for name in operator.covers}
    return {name for name in used if name not in covered and name not in EXEMPT}
