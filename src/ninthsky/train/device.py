"""The one file that names devices and their back ends. Everything else takes what these functions give."""

from __future__ import annotations

import torch


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


def synchronize(on: torch.device) -> None:
    """Waits until the device has done all that was asked of it: before a clock is read."""
    if on.type != "cpu":
        torch.accelerator.synchronize(on)
