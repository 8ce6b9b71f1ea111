"""`n9 train vet`: what one runs on a young chip before trusting it with a training run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ninthsky.errors import FAILED, OK, UserError

if TYPE_CHECKING:
    import torch

Json = Annotated[bool, Parameter(name="--json", negative=())]
Flag = Annotated[bool, Parameter(negative=())]


def vet(
    *,
    device: str | None = None,
    seed: int = 0,
    quick: Flag = False,
    only: tuple[str, ...] = (),
    expect: tuple[str, ...] = (),
    on_host: tuple[str, ...] = (),
    fault: str | None = None,
    out: Path | None = None,
    json_: Json = False,
) -> int:
    """Operators against fp64, repeats, speeds, collectives, and twenty golden steps on a device; status 1 where one fails.

    Parameters
    ----------
    device
        cpu, cuda, npu, cuda:1 ... or `simulated`; by default the accelerator that torch sees.
    seed
        Of the numbers that are drawn.
    quick
        A few seconds: products and memory whose right answers are known to the bit. Prints one line of JSON.
    only
        Names of operators, as the table has them; all by default, with golden run, collectives and speeds.
    expect
        The least that a speed may be, such as "matmul bf16=300" (TFLOP/s) or "copy within=1500" (GB/s).
    on_host
        torch's names of operators to work on the host instead (`topk`): shows whether that mends it.
    fault
        With `--device simulated`: which planted fault it has; `list` prints them.
    out
        Folder for vet.json and evidence.jsonl.
    """
    import torch
    from rich.console import Console

    from ninthsky.train.vet import examine, report, simulated
    from ninthsky.train.vet.golden import STEPS
    from ninthsky.train.vet.quick import quick as quick_test

    torch.set_num_threads(1)
    if fault == "list":
        return _faults(json_)
    if out is not None:
        _folder(out)
    chosen = _device(device, fault)
    with simulated.planted(_planted(fault)):
        if quick:
            answer = quick_test(chosen)
            print(json.dumps(answer.line()))
            return OK if answer.good else FAILED
        if on_host:
            from ninthsky.train.vet.detour import on_host as detour

            detour(*on_host, device=chosen)
        operators = _operators(only)
        console = Console(stderr=json_)
        limits = _limits(expect)
        cpu = chosen.type in ("cpu", simulated.NAME)
        with console.status("vet") as status:
            found = examine.examine(
                chosen,
                seed,
                operators,
                golden=0 if only else STEPS,
                size=0 if only else 512 if cpu else 8192,
                bytes_=(64 if cpu else 1024) << 20,
                expected=limits,
                collectives=not only,
                told=lambda name: status.update(f"vet: {name}"),
            )
    if out is not None:
        report.write(found, out)
    if json_:
        print(json.dumps(report.tree(found)))
    else:
        if chosen.type == simulated.NAME:
            console.print(f"simulated device{f', planted fault: {fault}' if fault else ''}")
        report.show(found, console)
    return FAILED if found.failed else OK


def _device(name: str | None, fault: str | None) -> torch.device:
    import torch

    from ninthsky.train.step.device import device as default
    from ninthsky.train.vet import simulated

    if name == simulated.NAME:
        return simulated.register()
    if fault is not None:
        raise UserError(
            "N9-TRN-020", "only the simulated device has faults to order", "--fault", "n9 train vet --device simulated"
        )
    if name is None:
        return default()
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, ModuleNotFoundError) as error:  # AssertionError: torch was built without it
        seen = default()
        what = f"torch has no device {name!r} here: {(str(error).splitlines() or ['no reason given'])[0]}"
        raise UserError("N9-TRN-020", what, "--device", f"torch sees: {seen}") from None
    return device


def _folder(out: Path) -> None:
    """Made before the examination, which is not to be lost for a folder that cannot be."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError("N9-TRN-020", f"no folder for the records: {error}", str(out), "name another with --out") from None


def _planted(fault: str | None):  # type: ignore[no-untyped-def]
    if fault is None:
        return None
    from ninthsky.train.vet.heldback import FAULTS

    if fault not in FAULTS:
        raise UserError("N9-TRN-020", f"there is no fault {fault!r}", "--fault", f"there are: {', '.join(FAULTS)}")
    return FAULTS[fault].make()


def _faults(json_: bool) -> int:
    from ninthsky.train.vet.heldback import FAULTS

    print(json.dumps({name: fault.what for name, fault in FAULTS.items()}) if json_ else
          "\n".join(f"{name:28s} {fault.what}" for name, fault in FAULTS.items()))  # fmt: skip
    return OK


def _operators(only: tuple[str, ...]):  # type: ignore[no-untyped-def]
    from ninthsky.train.vet.examine import OPERATORS

    known = {operator.name: operator for operator in OPERATORS}
    if wrong := [name for name in only if name not in known]:
        raise UserError("N9-TRN-020", f"there is no operator {wrong[0]!r}", "--only", f"there are: {', '.join(known)}")
    return [known[name] for name in only] if only else OPERATORS


def _limits(expect: tuple[str, ...]) -> dict[str, float]:
    limits = {}
    for text in expect:
        name, _, value = text.partition("=")
        try:
            limits[name.strip()] = float(value)
        except ValueError:
            raise UserError("N9-TRN-020", f"{text!r} is no expectation", "--expect", "write it as 'copy within=1500'") from None
    return limits
