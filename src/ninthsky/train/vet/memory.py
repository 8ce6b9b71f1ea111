"""Bytes that move and must not change, casts, views, what is made from nothing, and random numbers."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ninthsky.train.step.device import host_buffer, synchronize
from ninthsky.train.vet.case import FLOATS, Case, Operator, Probe, Wrong, bits, check_equal
from ninthsky.train.vet.draws import all_of, normal

TRAINED = (torch.float32, torch.bfloat16)
SIZES = (1, 3, 127, 1025, 65_537, 1_048_577, 5_000_011)  # bytes, so that every tail is odd


def _patterns(device: torch.device, dtype: torch.dtype, generator: Generator) -> None:
    """Host to device, within, and back: bytes of every size, and checkerboards that show a stuck line."""
    for size in SIZES:
        words = torch.randint(-(2**63), 2**63 - 1, (size // 8 + 1,), dtype=torch.int64, generator=generator)
        x = words.view(torch.uint8)[:size].contiguous()
        far = x.to(device)
        again = torch.empty_like(far).copy_(far)
        check_equal(far, x, f"{size:,d} bytes there and back")
        check_equal(again, x, f"{size:,d} bytes copied within the device")
        near = torch.empty_like(x)
        near.copy_(again)
        check_equal(near, x, f"{size:,d} bytes into a tensor of the host")
    for byte in (0x00, 0xFF, 0x55, 0xAA):
        x = torch.full((1 << 20,), byte, dtype=torch.uint8)
        check_equal(x.to(device).clone(), x, f"pattern {byte:#04x}")
    far = torch.arange(1_000_003, dtype=torch.int32).to(device, copy=True)
    near = host_buffer(far)
    near.copy_(far, non_blocking=True)
    synchronize(device)
    check_equal(near, torch.arange(1_000_003, dtype=torch.int32), "a copy to the host that was not waited for")
    strided = torch.arange(40_003, dtype=torch.int32)[1::3]
    check_equal(strided.to(device), strided.contiguous(), "every third number")
    far = torch.zeros(101, 103, dtype=torch.int32, device=device)
    block = torch.arange(50 * 51, dtype=torch.int32).view(50, 51)
    far[7:57, 11:62].copy_(block)
    wanted = torch.zeros(101, 103, dtype=torch.int32)
    wanted[7:57, 11:62] = block
    check_equal(far, wanted, "a block into the middle")


def _to_low(device: torch.device, dtype: torch.dtype, generator: Generator) -> None:
    """fp32 to 16 bits, to the nearest, ties to even (IEEE 754, 4.3.1): each 16-bit number, its neighbours and each half-way."""
    every = torch.arange(65_536, dtype=torch.int32).to(torch.int16).view(dtype)
    wide = every.float()
    check_equal(every.to(device).float(), wide, "16 bits to fp32")
    at = wide[wide.isfinite()].view(torch.int32)
    half = 1 << 15 if dtype == torch.bfloat16 else 1 << 12
    near = torch.cat([at + step for step in (0, half - 1, half, half + 1)]).view(torch.float32)
    near = near[near.isfinite()]
    if dtype == torch.float16:  # numbers that fp16 holds as its smallest ones have half-ways elsewhere, and may be flushed
        near = near[near.abs() >= 2**-14]
    else:
        near = near[near.abs() >= torch.finfo(torch.float32).smallest_normal]
    got, wanted = near.to(device).to(dtype), near.to(dtype)
    check_equal(got, wanted, "fp32 to 16 bits")
    random = torch.randn(100_003, generator=generator)
    check_equal(random.to(device).to(dtype).float(), random.to(dtype).float(), "fp32 to 16 bits and back")


def _to_others(device: torch.device, dtype: torch.dtype, generator: Generator) -> None:
    whole = torch.randint(-(2**31), 2**31 - 1, (10_007,), generator=generator)
    for target in (torch.float32, torch.int32, torch.float64, torch.bool):
        check_equal(whole.to(device).to(target), whole.to(target), f"int64 to {target}")
    truth = whole % 3 == 0
    for target in (torch.float32, torch.int64, torch.bfloat16):
        check_equal(truth.to(device).to(target), truth.to(target), f"bool to {target}")
    real = torch.randn(10_007, generator=generator, dtype=torch.float64) * 1e4
    for target in (torch.int64, torch.int32, torch.float32):
        check_equal(real.to(device).to(target), real.to(target), f"fp64 to {target}")


def _autocast(device: torch.device, dtype: torch.dtype, generator: Generator) -> None:
    """Products in bf16, weights and their gradients in fp32, other dtypes as they were; and nothing of it afterwards."""
    weight = torch.randn(24, 40, generator=generator).to(device).requires_grad_()
    x = torch.randn(9, 40, generator=generator).to(device)
    with torch.autocast(device.type, torch.bfloat16):
        if not torch.is_autocast_enabled(device.type) or torch.get_autocast_dtype(device.type) != torch.bfloat16:
            raise Wrong("torch does not see that autocast is on")
        y = torch.nn.functional.linear(x, weight)
        z = torch.mm(x, weight.t())
        with torch.autocast(device.type, enabled=False):
            inside = torch.nn.functional.linear(x, weight)
        summed = y.float().sum()
    summed.backward()
    seen = {"linear": y.dtype, "mm": z.dtype}
    if any(kind != torch.bfloat16 for kind in seen.values()):
        raise Wrong(f"under autocast: {seen}")
    if inside.dtype != torch.float32 or torch.mm(x, weight.detach().t()).dtype != torch.float32:
        raise Wrong("autocast does not end where it is switched off")
    if weight.grad is None or weight.grad.dtype != torch.float32:
        raise Wrong("the gradient of an fp32 weight is not fp32")


def _made(device: torch.device, dtype: torch.dtype, generator: Generator) -> None:
    for count in (0, 1, 31, 4099):
        check_equal(torch.zeros(count, dtype=dtype, device=device), torch.zeros(count, dtype=dtype), "zeros")
        check_equal(torch.ones(count, dtype=dtype, device=device), torch.ones(count, dtype=dtype), "ones")
        check_equal(torch.full((count,), 0.1, dtype=dtype, device=device), torch.full((count,), 0.1, dtype=dtype), "full")
        check_equal(torch.arange(count, device=device), torch.arange(count), "arange")
        check_equal(
            torch.arange(0, count, 2, dtype=torch.float32, device=device),
            torch.arange(0, count, 2, dtype=torch.float32),
            "arange 2",
        )
    x = torch.empty(17, 19, dtype=dtype, device=device)
    check_equal(x.fill_(3.0), torch.full((17, 19), 3.0, dtype=dtype), "fill_")
    check_equal(torch.zeros_like(x), torch.zeros(17, 19, dtype=dtype), "zeros_like")
    check_equal(torch.full_like(x, -1.0), torch.full((17, 19), -1.0, dtype=dtype), "full_like")
    check_equal(x.new_zeros(5), torch.zeros(5, dtype=dtype), "new_zeros")
    check_equal(x.zero_(), torch.zeros(17, 19, dtype=dtype), "zero_")
    check_equal(torch.scalar_tensor(2.5, dtype=dtype, device=device), torch.scalar_tensor(2.5, dtype=dtype), "scalar_tensor")
    check_equal(torch.empty_like(x).fill_(2.0), torch.full((17, 19), 2.0, dtype=dtype), "empty_like")
    check_equal(torch.ones_like(x), torch.ones(17, 19, dtype=dtype), "ones_like")
    check_equal(x.new_empty(4, 3).fill_(5.0), torch.full((4, 3), 5.0, dtype=dtype), "new_empty")
    if (value := torch.tensor([1.5, 2.5], device=device)[1].item()) != 2.5:
        raise Wrong(f"a number read from the device is {value} where 2.5 is right")


def _random(device: torch.device, dtype: torch.dtype, generator: Generator) -> None:
    """Same seed, same numbers; another seed, others; mean, variance and range as they should be (5 standard deviations)."""
    count = 40_000
    drawn, before = [], torch.get_rng_state()
    for seed in (11, 11, 12):
        torch.manual_seed(seed)
        empty = torch.empty(count, device=device)
        drawn.append((torch.randn(count, device=device).cpu(), torch.rand(count, device=device).cpu(),
                      torch.randint(0, 97, (count,), device=device).cpu(), empty.normal_(0.0, 1.0).cpu().clone(),
                      empty.uniform_(0.0, 1.0).cpu().clone()))  # fmt: skip
    torch.set_rng_state(before)
    for name, one, same, other in zip(("randn", "rand", "randint", "normal_", "uniform_"), *drawn, strict=True):
        check_equal(same, one, f"{name} from the same seed")
        if bool((one == other).all()):
            raise Wrong(f"{name} gives the same numbers from another seed")
    normal_, uniform, whole, normal_too, uniform_too = (x.double() for x in drawn[0])
    moments = (
        ("randn", normal_, 0.0, 1.0, 3.0), ("normal_", normal_too, 0.0, 1.0, 3.0), ("rand", uniform, 0.5, 1 / 12, 1 / 80),
        ("uniform_", uniform_too, 0.5, 1 / 12, 1 / 80), ("randint", whole, 48.0, (97**2 - 1) / 12, None),
    )  # fmt: skip
    for name, x, mean, variance, fourth in moments:
        if abs(float(x.mean()) - mean) > 5 * (variance / count) ** 0.5:
            raise Wrong(f"{name}: mean {float(x.mean()):.4f} where {mean} is right")
        kurtosis = fourth if fourth is not None else 1.8 * variance**2
        if abs(float(x.var()) - variance) > 5 * ((kurtosis - variance**2) / count) ** 0.5:
            raise Wrong(f"{name}: variance {float(x.var()):.4f} where {variance:.4f} is right")
    if float(uniform.min()) < 0 or float(uniform.max()) >= 1 or float(whole.min()) < 0 or float(whole.max()) > 96:
        raise Wrong("random numbers outside of their range")


def _views(x: Tensor) -> Tensor:
    """One tensor out of many ways of looking at `x` [6, 10, 8]."""
    parts = [
        x.transpose(0, 2), x.permute(1, 2, 0), x[1:5:2, ::3], x.unsqueeze(1).expand(6, 3, 10, 8), x.select(1, 4),
        x.flatten(1).t(), x.chunk(2, -1)[1], x.split([3, 7], 1)[1], x.unbind(0)[2], x[:, :1].squeeze(1),
        x.reshape(15, 32)[3:].mT, x.view(-1)[7:70], x.narrow(0, 2, 3), x.unflatten(1, (2, 5)).movedim(2, 0),
        x.diagonal(dim1=0, dim2=1), torch.ops.aten.alias(x)[1:2], x.as_strided((4, 3), (7, 2), 5),
    ]  # fmt: skip
    return torch.cat([part.contiguous().flatten() for part in parts])


def _many(x: Tensor) -> Tensor:
    return torch.cat(
        [
            torch.stack((x, x.flip(0))).flatten(),
            torch.cat((x[:1], x[3:], x), 0).flatten(),
            torch.cat([x[:, :0], x], 1).flatten(),
        ]
    )


def _views_back(device: torch.device, dtype: torch.dtype, generator: Generator) -> None:
    """Gradients through views: whole numbers, so that every sum is exact."""
    x = torch.randint(-3, 4, (6, 10, 8), generator=generator).to(dtype)
    near, far = x.clone().requires_grad_(), x.to(device).requires_grad_()
    upstream = torch.randint(-2, 3, _views(x).shape, generator=generator).to(dtype)
    _views(near).backward(upstream)
    _views(far).backward(upstream.to(device))
    assert near.grad is not None and far.grad is not None
    check_equal(far.grad, near.grad, "gradient through views")


def _weights_survive(device: torch.device, dtype: torch.dtype, generator: Generator) -> None:
    """What lies on the device is still there after much else came and went."""
    kept = torch.randn(300_001, generator=generator)
    far = kept.to(device)
    for size in (100_000, 400_000, 50_000):
        torch.randn(size, device=device).mul_(2.0).sum().item()
    if bool((bits(far.cpu()) != bits(kept)).any()):
        raise Wrong("a tensor changed while others were made and freed")


OPERATORS = (
    Operator(
        "copy",
        ("copy", "clone", "contiguous"),
        (Probe("bytes of all sizes and patterns", _patterns), Probe("weights at rest", _weights_survive)),
        "copy in blocks below the size that fails; if small ones fail too, the device cannot be used",
    ),
    Operator(
        "cast",
        ("to", "_to_copy"),
        (
            Probe("16 bits to the nearest, ties to even", _to_low, (torch.bfloat16, torch.float16)),
            Probe("numbers, truth", _to_others),
        ),
        "train in fp32",
        'train.precision = "fp32"',
    ),
    Operator(
        "autocast",
        (),
        (Probe("dtypes", _autocast),),
        "train in fp32",
        'train.precision = "fp32"',
    ),
    Operator(
        "views",
        (
            "view",
            "_unsafe_view",
            "reshape",
            "as_strided",
            "transpose",
            "permute",
            "expand",
            "slice",
            "select",
            "narrow",
            "squeeze",
            "unsqueeze",
            "unbind",
            "split",
            "split_with_sizes",
            "chunk",
            "flatten",
            "unflatten",
            "alias",
            "detach",
            "movedim",
            "diagonal",
            "mT",
            "cat",
            "stack",
            "slice_backward",
            "select_backward",
        ),
        (
            Case("sixteen ways to look at a tensor", all_of(normal(6, 10, 8)), _views, dtypes=TRAINED, layouts=("plain",)),
            Case("joined", all_of(normal(7, 9)), _many, dtypes=FLOATS),
            Probe("gradients through views", _views_back, TRAINED),
        ),
        "call .contiguous() before the operator that takes a view",
    ),
    Operator(
        "make",
        (
            "zeros",
            "ones",
            "full",
            "empty",
            "empty_like",
            "zeros_like",
            "ones_like",
            "full_like",
            "new_zeros",
            "new_empty",
            "arange",
            "fill",
            "zero",
            "scalar_tensor",
            "item",
            "_local_scalar_dense",
        ),
        (Probe("zeros, ones, ranges", _made, TRAINED),),
        "make it on the host and copy it",
    ),
    Operator(
        "random numbers",
        ("normal", "uniform", "randn", "rand", "randint"),
        (Probe("same seed, same numbers", _random),),
        "draw on the host and copy: the model's weights are drawn so",
    ),
)
