"""A simulated accelerator, for tests and for learning: a device of torch's own (PrivateUse1) whose memory and operators are
the CPU's, with a place between the two where a fault can be planted.

A tensor on it is a real one: its bytes lie in host memory and are labelled as another device's through DLPack, so views,
autograd, optimizers and `copy_` work as on any accelerator. Operators without a kernel of their own come to one function,
`_run`, which shows them the same bytes as CPU tensors. It costs about 20 microseconds a call and says nothing about speed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "simulated"

Kernel = Callable[..., Any]
# (operator's name without overload and trailing underscore, arguments, keywords, the sound operator) -> result; all on CPU
Fault = Callable[[str, tuple[Any, ...], dict[str, Any], Kernel], Any]

_DL_CPU, _DL_EXTENSION = 1, 12  # DLPack's numbers for kDLCPU and kDLExtDev, which torch takes for PrivateUse1

_fault: Fault | None = None
_registered: list[torch.library.Library] = []


class _DLDevice(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int32), ("index", ctypes.c_int32)]


class _DLTensor(ctypes.Structure):  # its first two members; a versioned capsule is never asked for
    _fields_ = [("data", ctypes.c_void_p), ("device", _DLDevice)]


_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


class _Module(_DummyBackendModule):
    """What torch asks of `torch.simulated`. Never the process's default accelerator: it has to be named."""

    def is_available(self) -> bool:
        return False

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def synchronize(self, device: object = None) -> None:
        """All is done when a call returns."""

    def get_rng_state(self, device: object = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: object = None) -> None:
        torch.set_rng_state(state)


def register() -> torch.device:
    """Makes the device known to this process (once, and for good) and returns it.

    Raises RuntimeError where another PrivateUse1 device is registered: torch has room for one.
    """
    if not _registered:
        if torch._C._get_privateuse1_backend_name() != "privateuseone":
            raise RuntimeError(f"this process has another device: {torch._C._get_privateuse1_backend_name()}")
        _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
        every = torch.library.Library("_", "IMPL")
        every.fallback(_run, "PrivateUse1")
        own = torch.library.Library("aten", "IMPL")
        for name, kernel in _KERNELS.items():
            own.impl(name, kernel, "PrivateUse1")
        every.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
        for name in _LOWERED:
            own.impl(name, _lowered(getattr(torch.ops.aten, name)), "AutocastPrivateUse1")
        _registered.extend((every, own))
    return torch.device(NAME, 0)


@contextmanager
def planted(fault: Fault | None) -> Iterator[None]:
    """The device with this fault, until the block's end."""
    global _fault
    before, _fault = _fault, fault
    try:
        yield
    finally:
        _fault = before


def _relabelled(tensor: Tensor, kind: int) -> Tensor:
    """The same memory under another device's name; keeps the memory alive."""
    capsule = torch._C._to_dlpack(tensor)
    seen = _DLTensor.from_address(_pointer(capsule, b"dltensor"))
    seen.device.type, seen.device.index = kind, 0
    alias: Tensor = torch._C._from_dlpack(capsule)
    return alias


def _host(tensor: Tensor) -> Tensor:
    return _relabelled(tensor, _DL_CPU)


def _on_device(tensor: Tensor) -> Tensor:
    return _relabelled(tensor.resolve_conj().resolve_neg(), _DL_EXTENSION)


def _is_ours(value: object) -> bool:
    return isinstance(value, Tensor) and value.device.type == NAME


def _run(op: torch._ops.OpOverload, *args: Any, **kwargs: Any) -> Any:
    """Any operator, on the host's view of the device's memory. What comes out is on the device."""
    taken: list[tuple[Tensor, Tensor]] = []  # (on the device, the host's view of it)

    def down(value: Any) -> Any:
        if _is_ours(value):
            taken.append((value, _host(value) if value.numel() else torch.empty(value.shape, dtype=value.dtype)))
            return taken[-1][1]
        if isinstance(value, torch.device) and value.type == NAME:
            return torch.device("cpu")
        return value

    host_args, host_kwargs = pytree.tree_map(down, (_wrapped(op, args), kwargs))
    shapes = [tuple(view.shape) for _, view in taken]
    name = op._schema.name.removeprefix("aten::").rstrip("_")
    out = op(*host_args, **host_kwargs) if _fault is None else _fault(name, host_args, host_kwargs, op)
    for (own, view), shape in zip(taken, shapes, strict=True):
        if tuple(view.shape) != shape:  # an `out` argument that the operator gave its size
            fresh = _on_device(view)
            _cpu(torch.ops.aten.set_.source_Storage_storage_offset)(
                own, fresh.untyped_storage(), 0, list(view.shape), list(view.stride())
            )

    def up(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.device.type != "cpu":
            return value
        for own, view in taken:
            if value is view:
                return own
        for own, view in taken:
            if value.numel() and value.untyped_storage().data_ptr() == view.untyped_storage().data_ptr():
                offset = own.storage_offset() + (value.data_ptr() - view.data_ptr()) // own.element_size()
                return _cpu(torch.ops.aten.as_strided.default)(own, list(value.shape), list(value.stride()), offset)
        return _on_device(value)

    return pytree.tree_map(up, out)


def _wrapped(op: torch._ops.OpOverload, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Numbers as the tensors that the operator's schema wants: on the way to a Python kernel torch unpacks them."""
    return tuple(
        torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
        if isinstance(value, (int, float)) and isinstance(argument.type, torch.TensorType)
        else value
        for argument, value in zip(op._schema.arguments, args, strict=False)
    )


def _cpu(op: torch._ops.OpOverload) -> Kernel:
    """The CPU's kernel, for operators that only rearrange a tensor's description and look at no byte."""
    return lambda *args: op._op_dk(torch._C.DispatchKey.CPU, *args)


def _as_strided(own: Tensor, size: list[int], stride: list[int], storage_offset: int | None = None) -> Tensor:
    out: Tensor = _cpu(torch.ops.aten.as_strided.default)(own, size, stride, storage_offset)
    return out


def _view(own: Tensor, size: list[int]) -> Tensor:
    out: Tensor = _cpu(torch.ops.aten.view.default)(own, size)
    return out


def _empty(size: list[int], dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None,
           memory_format: Any = None) -> Tensor:  # fmt: skip
    return _on_device(torch.empty(size, dtype=dtype, memory_format=memory_format or torch.contiguous_format))


def _empty_strided(size: list[int], stride: list[int], dtype: Any = None, layout: Any = None, device: Any = None,
                   pin_memory: Any = None) -> Tensor:  # fmt: skip
    return _on_device(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """Host to device, device to host, and within the device: `copy_` ends here."""
    near, far = (_host(tensor) if _is_ours(tensor) else tensor.detach() for tensor in (source, target))
    if _fault is None:
        far.copy_(near)
    else:
        way = "within" if _is_ours(source) and _is_ours(target) else "in" if _is_ours(target) else "out"
        _fault("copy", (far, near), {"way": way}, lambda far, near, way: far.copy_(near))
    return target


def _set(own: Tensor, source: Any, offset: int, size: list[int], stride: list[int]) -> Tensor:
    out: Tensor = _cpu(torch.ops.aten.set_.source_Storage_storage_offset)(own, source, offset, size, stride)
    return out


def _set_tensor(own: Tensor, source: Tensor) -> Tensor:
    return _set(own, source.untyped_storage(), int(source.storage_offset()), list(source.shape), list(source.stride()))


def _resize(own: Tensor, size: list[int], memory_format: Any = None) -> Tensor:
    if list(own.shape) != list(size):
        kept, fresh = own.numel(), torch.empty(size, dtype=own.dtype)
        count = min(kept, fresh.numel())
        if count:
            fresh.view(-1)[:count] = _host(own).reshape(-1)[:count]
        _set_tensor(own, _on_device(fresh))
    return own


def _lowered(packet: torch._ops.OpOverloadPacket) -> Kernel:
    """Under autocast: the operator on arguments in autocast's dtype, as torch's own back ends do it."""

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(NAME, enabled=False):
            dtype = torch.get_autocast_dtype(NAME)
            cast = lambda x: x.to(dtype) if _is_ours(x) and x.dtype == torch.float32 else x  # noqa: E731
            return packet(*pytree.tree_map(cast, args), **pytree.tree_map(cast, kwargs))

    return kernel


# Without a kernel of their own torch makes these two of others: of a sigmoid and four roundings, and of a loop.
def _silu_backward(gradient: Tensor, x: Tensor) -> Any:
    return _run(torch.ops.aten.silu_backward.default, gradient, x)


def _grouped(*args: Any, **kwargs: Any) -> Any:
    return _run(torch.ops.aten._grouped_mm.default, *args, **kwargs)


def _math_attention(*args: Any, **kwargs: Any) -> int:
    return 0  # SDPBackend.MATH: attention is made of products and a softmax, each of which can be looked at


_LOWERED = ("linear", "matmul", "mm", "mv", "bmm", "addmm", "baddbmm", "einsum", "scaled_dot_product_attention")

_KERNELS: dict[str, Kernel] = {
    "as_strided": _as_strided,
    "view": _view,
    "empty.memory_format": _empty,
    "empty_strided": _empty_strided,
    "_copy_from": _copy_from,
    "set_.source_Storage_storage_offset": _set,
    "set_.source_Tensor": _set_tensor,
    "resize_": _resize,
    "silu_backward": _silu_backward,
    "_grouped_mm": _grouped,
    "_fused_sdp_choice": _math_attention,
}
