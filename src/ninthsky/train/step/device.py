"""The one file that names devices and their back ends. Everything else takes what these functions give."""

from __future__ import annotations

import ctypes
import sys

import torch

from ninthsky.guard.probe.group import Inner
from ninthsky.guard.probe.group import carrier as _carrier


def device() -> torch.device:
    """The accelerator that torch sees (any vendor's), else the CPU."""
    if torch.accelerator.is_available():
        accelerator = torch.accelerator.current_accelerator()
        if accelerator is not None:
            return torch.device(accelerator.type, torch.accelerator.current_device_index())
    return torch.device("cpu")


def collective_backend(on: torch.device) -> str:
    """Name of the process-group back end that carries tensors of this device."""
    if on.type == "cpu":
        return "gloo"
    return torch.distributed.get_default_backend_for_device(on.type)


def carrier(on: torch.device, address: str) -> Inner:
    """What the guard's process groups hand their work to on this device; what lies on the host goes over `address`."""
    return _carrier(address, on.type, collective_backend(on))


def synchronize(on: torch.device) -> None:
    """Waits until the device has done all that was asked of it: before a clock is read."""
    if on.type != "cpu":
        torch.get_device_module(on).synchronize(on)


def host_buffer(like: torch.Tensor) -> torch.Tensor:
    """CPU memory for a copy of a tensor: pinned where the device copies into such memory without waiting."""
    pinned = like.device.type in {"cuda", "npu"}
    return torch.empty(like.shape, dtype=like.dtype, pin_memory=pinned)


def keep_freed_memory() -> None:
    """Asks the C library to keep what this process frees, where it can be asked (glibc).

    A step frees all it took. Given back to the system, each page of it has to be mapped and zeroed again in the next step,
    which was a tenth of a step's processor time on a CPU (docs/decisions/0004).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD (malloc.h)
            mallopt(parameter, 2**31 - 1)
