"""The workaround for an operator that a device gets wrong: do it on the host.

    from ninthsky.train.vet.detour import on_host

    on_host("topk", "bincount")  # before the run, in every process

Tensors go to the host, the operator works there, what comes out goes back: slow, and right.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ninthsky.errors import UserError

_detours: list[torch.library.Library] = []


def on_host(*names: str, device: torch.device | None = None) -> None:
    """From now on, operators of these names (torch's, without overload: `topk`) of this process work on the host.

    `device` is by default the accelerator that torch sees. Raises UserError N9-TRN-020 for a name that torch does not know.
    """
    from ninthsky.train.step.device import device as default_device

    on = device or default_device()
    if on.type == "cpu":
        raise UserError("N9-TRN-020", "the host has no other host to go to", "--on-host", "name an accelerator with --device")
    key = torch._C._dispatch_key_for_device(on.type)
    library = torch.library.Library("aten", "IMPL")
    for name in names:
        packet = getattr(torch.ops.aten, name, None)
        if packet is None:
            what = f"torch has no operator {name!r}"
            raise UserError("N9-TRN-020", what, "--on-host", "take a name from the list that `n9 train vet --json` gives")
        for family in (packet, getattr(torch.ops.aten, f"{name}_", None)):
            for variant in family.overloads() if family is not None else ():
                op = getattr(family, variant)
                overload = "" if variant == "default" else f".{variant}"
                library.impl(op._schema.name.removeprefix("aten::") + overload, _through_host(op), key, allow_override=True)
    _detours.append(library)


def back() -> None:
    """Ends all detours of this process."""
    while _detours:
        _detours.pop()._destroy()


def _through_host(op: torch._ops.OpOverload) -> Any:
    changed = [argument.name for argument in op._schema.arguments if argument.alias_info and argument.alias_info.is_write]

    def kernel(*args: Any, **kwargs: Any) -> Any:
        names = [argument.name for argument in op._schema.arguments]
        given = dict(zip(names, args, strict=False)) | kwargs
        devices = [x.device for x in pytree.tree_leaves(given) if isinstance(x, Tensor) and x.device.type != "cpu"]
        near = pytree.tree_map(_near, given)
        out = op(**near)
        for name in changed:
            for own, done in zip(pytree.tree_leaves(given[name]), pytree.tree_leaves(near[name]), strict=True):
                if isinstance(own, Tensor):
                    if own.shape != done.shape:
                        own.resize_(done.shape)
                    own.copy_(done)
        if changed:
            written = [given[name] for name in changed]
            return None if not op._schema.returns else written[0] if len(written) == 1 else tuple(written)
        return pytree.tree_map(lambda x: x.to(devices[0]) if isinstance(x, Tensor) and devices else x, out)

    return kernel


def _near(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.cpu()
    return torch.device("cpu") if isinstance(value, torch.device) else value
