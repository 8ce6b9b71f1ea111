"""`python -m benchmarks.train`: one core's tokens per CPU-second against Hugging Face models of the same shape, in one run.

Each side trains in a process of its own: forward, backward, clipping, fused AdamW, bf16 autocast over fp32 weights, on the same
made tokens. Of a peer's settings (experts eager or grouped, compiled or not) the fastest counts; sides then take turns, step by
step, so that a busy machine disturbs all alike. Figures are medians of the ratios of a round. Where torch sees an accelerator
all of it runs there, by the clock; that has not been done. Parity, replicas and ranks are measured by the files that own them.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import parity, scaling, state
from benchmarks.report import median_interval, publish
from benchmarks.sides import LENGTH, ROWS, SHAPE, Side
from ninthsky.train.step.device import device

PEERS = ("mixtral", "qwen3moe")
# transformers' third setting, batched_mm, copies an expert's weights for every row: 3 GiB at this shape.
SETTINGS = ("eager", "eager compiled", "grouped_mm", "grouped_mm compiled")
TOKENS = ROWS * LENGTH
Table = list[list[Any]]


def screen(peer: str) -> dict[str, float | str]:
    """Seconds per step of the peer under each setting; where it does not run, what it said."""
    tried: dict[str, float | str] = {}
    for setting in SETTINGS:
        side = Side(f"{peer} {setting}")
        try:
            for _ in range(3):
                side.ask("step")
            tried[side.name] = statistics.median(side.ask("step") for _ in range(3))
        except RuntimeError as error:
            tried[side.name] = str(error).splitlines()[-1]
        side.close()
    return tried


def speed(rounds: int) -> tuple[Table, dict[str, Any]]:
    """Ours, plain and compiled, against each peer at its best, with its own allocator and with one that keeps freed memory."""
    with ThreadPoolExecutor() as pool:  # two at a time: compiling takes minutes
        screened = dict(zip(PEERS, pool.map(screen, PEERS), strict=True))
    ran = {peer: {name: told for name, told in found.items() if isinstance(told, float)} for peer, found in screened.items()}
    best = {peer: min(found, key=lambda name: found[name]) for peer, found in ran.items()}
    sides = {name: Side(name) for name in ("ninthsky", "ninthsky compiled", *best.values())}
    sides |= {f"{name}, memory kept": Side(name, kept=True) for name in best.values()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    peaks = []
    for number in range(-3, rounds):  # three rounds to warm up
        for name, side in sides.items():
            taken = side.ask("step")
            if number >= 0:
                seconds[name].append(taken)
        if number >= 0:
            peaks.append(sides["ninthsky"].ask("matmul"))
    for side in sides.values():
        side.close()
    own = min(("ninthsky", "ninthsky compiled"), key=lambda name: statistics.median(seconds[name]))
    figures: dict[str, Any] = {"compiled": own != "ninthsky"}
    for peer, variant in best.items():
        for name, key in ((variant, ""), (f"{variant}, memory kept", "_memory_kept")):
            ratios = [theirs / ours for theirs, ours in zip(seconds[name], seconds[own], strict=True)]
            figures |= median_interval(ratios, f"moe_over_hf_{peer}{key}")
    gain = [plain / made for plain, made in zip(seconds["ninthsky"], seconds["ninthsky compiled"], strict=True)]
    figures |= median_interval(gain, "compile_gain")
    flops = SHAPE.flops_per_token(LENGTH)
    for name, key in (("ninthsky", "mfu_bf16_plain"), (own, "mfu_bf16")):
        shares = [flops * TOKENS / taken / peak for taken, peak in zip(seconds[name], peaks, strict=True)]
        figures |= median_interval(shares, key)
    rows: Table = [
        [f"{name}: tokens per second, tried", TOKENS / told if isinstance(told, float) else "did not run", ""]
        for found in screened.values()
        for name, told in found.items()
    ]
    rows += [[f"{name}: tokens per second, in turn", TOKENS / statistics.median(taken), ""] for name, taken in seconds.items()]
    rows += [["bf16 matmul peak, GFLOP per second", statistics.median(peaks) / 1e9, "2048 x 2048 x 2048, same run"],
             ["MFU of it", figures["mfu_bf16"], f"{flops / 1e6:.0f} MFLOP per token; {own}"]]  # fmt: skip
    return rows, figures


def memory() -> tuple[Table, dict[str, Any]]:
    """Peak of a process that does three steps, less what it held before the model was built."""
    held = {}
    for name in ("ninthsky", "mixtral eager", "qwen3moe eager"):
        side = Side(name)
        for _ in range(3):
            side.ask("step")
        held[name] = side.ask("memory")
        side.close()
    own = held.pop("ninthsky")
    rows: Table = [["peak memory, GiB", own, ", ".join(f"{name} {gib:.2f}" for name, gib in held.items())]]
    return rows, {"memory_over_hf": own / min(held.values())}


def ranks() -> tuple[Table, dict[str, Any]]:
    """Processor time per token on 1 to 8 ranks, and what of communication the wall clock sees."""
    worlds = scaling.measure()
    rows: Table = []
    figures: dict[str, Any] = {}
    for number in scaling.ROWS:
        tokens = number * scaling.LENGTH
        one = worlds[1][f"together {number}"][0]
        for world, found in worlds.items():
            together, alone = found[f"together {number}"], found[f"alone {number}"]
            beside = f"x {together[0] / one:.2f} of one rank; without communication x {alone[0] / one:.2f}"
            rows.append([f"{world} ranks, {tokens} tokens each: CPU us per token", together[0] / tokens * 1e6, beside])
        for world in scaling.WORLDS[1:]:
            figures[f"cpu_per_token_{world}_over_1_at_{tokens}"] = worlds[world][f"together {number}"][0] / one
            figures[f"crowding_{world}_over_1_at_{tokens}"] = worlds[world][f"alone {number}"][0] / one
        two = worlds[2]
        exposed = two[f"together {number}"][1] - two[f"alone {number}"][1]
        figures[f"communication_exposed_at_{tokens}"] = exposed / two[f"collectives {number}"][1]
        rows.append([
            f"2 ranks, {tokens} tokens each: wall ms of a step", two[f"together {number}"][1] * 1e3,
            f"without communication {two[f'alone {number}'][1] * 1e3:.0f}, its collectives alone "
            f"{two[f'collectives {number}'][1] * 1e3:.0f}",
        ])  # fmt: skip
    smallest = min(scaling.ROWS) * scaling.LENGTH
    figures["cpu_per_token_8_over_1"] = figures[f"cpu_per_token_8_over_1_at_{smallest}"]
    return rows, figures


def equal() -> tuple[Table, dict[str, Any]]:
    """All meshes of benchmarks/parity.py on 4 ranks against one process."""
    answers = parity.on_ranks(4, parity.CASES[4])
    found = [parity.judge([told[number] for told in answers]) for number in range(len(parity.CASES[4]))]
    worst = max(row["worst"] for row in found)
    row = [f"{len(found)} meshes of 4 ranks: largest difference", f"{worst:.1e}", "under SGD, losses and weights"]
    return [row], {"parity_max": worst, "parity_meshes": len(found)}


def replicas() -> tuple[Table, dict[str, Any]]:
    """Peer replicas after each step, as benchmarks/state.py measures them, on its realistic step."""
    with tempfile.TemporaryDirectory() as folder:
        found, rows = state.replicas(Path(folder), "small", 4, 2, None)
    return [list(row[:3]) for row in rows], {"replica_overhead": found["replica_overhead_small"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", nargs="*", choices=["speed", "memory", "ranks", "equal", "replicas"])
    options = parser.parse_args()
    parts = {"speed": lambda: speed(options.rounds), "memory": memory, "ranks": ranks, "equal": equal, "replicas": replicas}
    rows: Table = [["device", str(device()), ""]]
    figures: dict[str, Any] = {}
    for name in options.only or parts:
        lines, found = parts[name]()
        rows += lines
        figures |= found
        print(name, found, flush=True)
    assert all(math.isfinite(value) for value in figures.values())
    if options.only is None:
        publish("train", rows, figures)


if __name__ == "__main__":
    main()
