"""Every tensor operation of a pass, as digests: what went in, what came out. And one of them done again on its own.

Two cards that do the same work on the same numbers show the same outputs for the same inputs. The first operation for which
that does not hold is where one of them is wrong, whatever comes of it later, and whoever it was handed to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import torch
import xxhash
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from ninthsky.train.state.digest import digest

# Of these the content is not decided by their inputs.
_UNDECIDED = ("empty", "new_empty", "resize", "_unsafe_view", "record_stream", "set_")
# msgpack's extension codes: a tensor by its place among the operands, a type by its place in _DTYPES, the device where it is
# done, a layout or memory format by its name.
_PLACE, _DTYPE, _DEVICE, _NAME = 11, 12, 13, 14
_NAMED = (torch.layout, torch.memory_format)


@dataclass
class Trace:
    """Operations in order. `keys`: 63 bits over an operation's name and inputs, `outs`: over its outputs; `places` in it."""

    keys: list[int] = field(default_factory=list)
    outs: list[int] = field(default_factory=list)
    places: list[str] = field(default_factory=list)

    def tensor(self) -> Tensor:
        """[operations, 2] int64."""
        return torch.tensor([self.keys, self.outs], dtype=torch.int64).T.contiguous()

    def differs(self, other: Tensor) -> int:
        """Number of the first operation that had the same inputs in `other` ([n, 2], another's `tensor`) and other outputs;
        -1 where there is none."""
        theirs: dict[int, int] = {}
        twice: set[int] = set()
        for key, out in other.tolist():
            if theirs.setdefault(key, out) != out:
                twice.add(key)  # even there it did not repeat itself
        for number, (key, out) in enumerate(zip(self.keys, self.outs, strict=True)):
            if key in theirs and theirs[key] != out and key not in twice:
                return number
        return -1

    def out_of(self, other: Tensor, number: int) -> int:
        """What came out of operation `number` there."""
        return next(out for key, out in other.tolist() if key == self.keys[number])


@dataclass(frozen=True)
class Operation:
    """One operation with its operands, as they were before it. `text` is for people."""

    name: str  # "aten.mm.default"
    form: bytes  # msgpack of its arguments, tensors by their place in `operands`
    operands: list[Tensor]
    text: str

    def run(self, device: torch.device) -> int:
        """Done here and now on copies of its operands. -> digest of what comes out."""
        _, packet, overload = self.name.split(".")
        function = getattr(getattr(torch.ops.aten, packet), overload)
        operands = [_copy(operand, device) for operand in self.operands]

        def extension(code: int, data: memoryview) -> Any:
            if code in {_DEVICE, _NAME}:
                return device if code == _DEVICE else getattr(torch, bytes(data).decode())
            place = int.from_bytes(data, "little")
            return operands[place] if code == _PLACE else _DTYPES[place]

        args, names = msgspec.msgpack.decode(self.form, ext_hook=extension)
        return _digest_all(function(*args, **names))


class Tracing(TorchDispatchMode):
    """Within it operations are written into `trace`; that of number `capture` is kept whole in `captured`.

    `model`: whose submodules' names are told as places; what no forward of them does is "the backward".
    """

    def __init__(self, model: nn.Module, capture: int = -1) -> None:
        super().__init__()
        self.trace, self.capture = Trace(), capture
        self.captured: Operation | None = None
        self._names = {id(module): name for name, module in model.named_modules()}
        self._within: list[str] = []
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> Tracing:
        self._hooks = [
            register_module_forward_pre_hook(lambda module, _: self._enter(module)),
            register_module_forward_hook(lambda module, *_: self._leave(module)),
        ]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def _enter(self, module: nn.Module) -> None:
        if id(module) in self._names:
            self._within.append(self._names[id(module)])

    def _leave(self, module: nn.Module) -> None:
        if id(module) in self._names and self._within:
            self._within.pop()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        leaves = tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if not _is_plain(func, tensors):
            return func(*args, **kwargs)
        hasher = xxhash.xxh3_64(func.name().encode())
        for leaf in leaves:
            told = (digest(leaf), str(leaf.dtype), tuple(leaf.shape)) if isinstance(leaf, Tensor) else str(leaf)
            hasher.update(repr(told).encode())
        if len(self.trace.keys) == self.capture:
            self.captured = _captured(func, args, kwargs)
        out = func(*args, **kwargs)
        self.trace.keys.append(hasher.intdigest() >> 1)
        self.trace.outs.append(_digest_all(out))
        self.trace.places.append(self._within[-1] or "the loss" if self._within else "the backward")
        return out


def _is_plain(func: Any, tensors: Sequence[Tensor]) -> bool:
    """Whether it is a computation of aten's on plain tensors that its inputs decide."""
    if func.namespace != "aten" or not tensors or any(type(tensor) not in _PLAIN or tensor.is_meta for tensor in tensors):
        return False
    name = func._schema.name.removeprefix("aten::")
    seeded = torch.Tag.nondeterministic_seeded in func.tags
    return not (func.is_view or seeded or name.startswith(_UNDECIDED))


_PLAIN = {Tensor, torch.nn.Parameter}
_DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32, torch.bool, torch.uint8]


def _digest_all(out: Any) -> int:
    values = [digest(leaf) for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
    return xxhash.xxh3_64_intdigest(repr(values).encode()) >> 1


def _captured(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Operation | None:
    """None for an operation whose arguments do not travel (a generator, a type that is not in _DTYPES)."""
    operands: list[Tensor] = []

    def encode(value: Any) -> Any:
        if isinstance(value, Tensor):
            operands.append(_copy(value.detach(), torch.device("cpu")))
            return msgspec.msgpack.Ext(_PLACE, (len(operands) - 1).to_bytes(4, "little"))
        if isinstance(value, torch.dtype) and value in _DTYPES:
            return msgspec.msgpack.Ext(_DTYPE, _DTYPES.index(value).to_bytes(4, "little"))
        if isinstance(value, torch.device):
            return msgspec.msgpack.Ext(_DEVICE, b"")
        if isinstance(value, _NAMED):
            return msgspec.msgpack.Ext(_NAME, str(value).removeprefix("torch.").encode())
        raise TypeError(type(value).__name__)

    try:
        form = msgspec.msgpack.encode((list(args), dict(kwargs)), enc_hook=encode)
    except TypeError:
        return None
    shapes = " x ".join(str(list(operand.shape)) for operand in operands)
    return Operation(str(func), form, operands, f"{func._schema.name.removeprefix('aten::')} of {shapes}")


def carry(operation: Operation | None, send: Callable[[Tensor], Tensor]) -> Operation | None:
    """The operation on every rank. `send` broadcasts a tensor from the rank that has it, and returns it (collective).

    The others call with None; all get None where there is none.
    """
    head = _Head(operation.name, operation.form, operation.text, [_form(t) for t in operation.operands]) if operation else None
    raw = msgspec.msgpack.encode(head)
    size = int(send(torch.tensor([len(raw)])))
    told = send(torch.frombuffer(bytearray(raw.ljust(size, b"\0")[:size]), dtype=torch.uint8).clone())
    found = msgspec.msgpack.decode(told.numpy().tobytes(), type=_Head | None)
    if found is None:
        return None
    own = operation.operands if operation else [_blank(*form) for form in found.operands]
    for operand in own:
        if operand.numel():
            memory = _memory(operand).view(torch.uint8)
            memory.copy_(send(memory))
    return Operation(found.name, found.form, own, found.text)


class _Head(msgspec.Struct, array_like=True):
    name: str
    form: bytes
    text: str
    operands: list[tuple[int, list[int], list[int]]]  # (place of the type in _DTYPES, shape, strides)


def _form(tensor: Tensor) -> tuple[int, list[int], list[int]]:
    return _DTYPES.index(tensor.dtype), list(tensor.shape), list(tensor.stride())


def _blank(kind: int, shape: list[int], strides: list[int]) -> Tensor:
    return torch.empty(_reach(shape, strides), dtype=_DTYPES[kind]).as_strided(shape, strides)


def _copy(tensor: Tensor, device: torch.device) -> Tensor:
    """With the same strides, gaps and all: kernels round by how their operands lie."""
    if not tensor.numel():
        return tensor.to(device, copy=True)
    return _memory(tensor).to(device, copy=True).as_strided(tensor.shape, tensor.stride())


def _memory(tensor: Tensor) -> Tensor:
    """All that lies between its first element and its last."""
    return tensor.as_strided((_reach(tensor.shape, tensor.stride()),), (1,), tensor.storage_offset())


def _reach(shape: Sequence[int], strides: Sequence[int]) -> int:
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) if 0 not in shape else 0
