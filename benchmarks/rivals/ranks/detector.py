"""NVRx's straggler detector where there is no CUDA: its own sections, reports and scores, with CUPTI left out.

`straggler.Detector.initialize` begins with CUPTI's profiler of kernels and its report with `torch.cuda.synchronize()`; neither
exists here. Both are replaced by nothing, so that what is left (the scores of sections' times on the host) is its own code.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import torch


class NoProfiler:
    """CUPTI's interface with nothing to tell."""

    def __init__(self, **_: Any) -> None: ...

    def initialize(self) -> None: ...

    def shutdown(self) -> None: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def reset(self) -> None: ...

    def get_stats(self) -> dict[str, Any]:
        return {}


def without_cupti() -> Any:
    """Its Detector, initialized."""
    sys.modules["nvrx_cupti_module"] = types.SimpleNamespace(CuptiProfiler=NoProfiler)  # type: ignore[assignment]
    torch.cuda.synchronize = lambda *_: None
    from nvidia_resiliency_ext.straggler import Detector  # type: ignore[import-not-found]

    Detector.initialize(scores_to_compute=["relative_perf_scores"], gather_on_rank0=True, profiling_interval=1)
    return Detector
