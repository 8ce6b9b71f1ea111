"""`python -m benchmarks.layout`: error of the step-time model on published runs, each judged by constants fitted without it.

Reads scale/published_runs_open.csv under NINTHSKY_DATA. The peer is the naive planner: the median MFU of the same card.
"""

from __future__ import annotations

import csv
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import median_interval, publish
from ninthsky.layout.cluster import CHIPS, Cluster
from ninthsky.layout.cost import Fit, step
from ninthsky.layout.cut import Cut, Cuts
from ninthsky.layout.search import Problem, search
from ninthsky.layout.shape import Sizes, Work

CHIP_NAMES = {"H100": "h100", "A100-80G": "a100-80gb", "A100-40G": "a100-40gb"}
UNFUSED = 0.2  # where the fit of attention that is not fused starts, of the card's share
FITTED = tuple(field.name for field in fields(Fit))


@dataclass(frozen=True)
class Row:
    """One published run, and what our model needs to predict it."""

    paper: str
    sizes: Sizes
    work: Work
    cluster: Cluster
    cut: Cuts
    seconds: float  # of a step, as published
    fused: bool  # attention

    @property
    def mfu(self) -> float:
        flops = self.sizes.flops_per_token(self.work.sequence) * self.work.tokens
        return flops / (self.seconds * self.cluster.ranks * self.cluster.chip.tflops * 1e12)

    @property
    def inside(self) -> bool:
        """The domain that the model states: wide layers, steps of a second and up, fused attention."""
        return self.sizes.dim >= 3072 and self.seconds >= 1.0 and self.fused


def read(path: Path) -> list[Row]:
    """16-bit runs of decoders with grouped or plain attention; 8-bit and latent-attention runs are not modelled."""
    rows = []
    with path.open(encoding="utf-8") as file:
        for line in csv.DictReader(file):
            if line["precision"] not in ("bf16", "fp16") or line["attn"] == "mla" or line["chip"] not in CHIP_NAMES:
                continue
            number = {key: int(float(value)) for key, value in line.items() if value.replace(".", "", 1).isdigit()}
            chips, experts, pp = number["chips"], number["experts"], number["pp"]
            sizes = Sizes(
                layers=number["layers"], dim=number["hidden"], heads=number["heads"], kv_heads=number["kv_heads"],
                head_dim=number["head_dim"], vocab=number["vocab"], experts=experts, experts_per_token=number["topk"],
                expert_dim=number["moe_ffn"], shared_experts=number["shared"],
                dense_layers=number["dense_layers"] if experts else number["layers"], dense_dim=number["ffn"],
                qk_norm=False, gated=bool(number["gated"]), tied=not number["gated"],
            )  # fmt: skip
            cut = Cut(
                pp=pp, dp_shard=number["dp"], ep=number["ep"], cp=number["cp"], tp=number["tp"], interleave=number["vpp"],
                micro_batch=number["mbs"], recompute=int(line["recompute"] == "full"), reshard=int(line["zero"] == "3"),
            )  # fmt: skip
            work = Work(number["seq"], number["gbs"])
            if line["tok_s_chip"]:
                seconds = work.tokens / (float(line["tok_s_chip"]) * chips)
            elif line["step_s"]:
                seconds = float(line["step_s"])
            else:
                seconds = work.tokens * _megatron_flops(sizes, work.sequence) / (float(line["tflops_chip"]) * 1e12 * chips)
            chip = CHIPS[CHIP_NAMES[line["chip"]]]
            rows.append(
                Row(line["paper"], sizes, work, Cluster(max(1, chips // 8), min(8, chips), chip, chip.memory_gb), Cuts.of(cut),
                    seconds, line["flash"] != "0")
            )  # fmt: skip
    return rows


def _megatron_flops(sizes: Sizes, sequence: int) -> float:
    """Per token, with full recomputation counted: Narayanan et al., arXiv 2104.04473, section 5.1."""
    layers, dim = sizes.layers, sizes.dim
    return 96.0 * layers * dim**2 * (1 + sequence / (6 * dim) + sizes.vocab / (16 * layers * dim))


def predict(rows: list[Row], constants: NDArray[np.float64]) -> NDArray[np.float64]:
    """Seconds of each row's step. The last constant is the share of peak of attention that is not fused."""
    fit = Fit(*constants[:-1].tolist())
    unfused = replace(fit, attention=float(constants[-1]))
    return np.array(
        [step(row.cut, row.sizes, row.work, row.cluster, fit if row.fused else unfused)["total"][0] for row in rows],
        dtype=float,
    )


def fitted(rows: list[Row], rounds: int = 12, prior: float = 0.5) -> NDArray[np.float64]:
    """Constants in logarithms by damped Gauss-Newton, papers weighted alike, drawn to the start by a normal prior.

    The prior (standard deviation 0.5, a factor of 1.65) holds what the rows cannot tell apart.
    """
    start = np.log(np.array([*astuple(START), UNFUSED]))
    counts = {row.paper: sum(other.paper == row.paper for other in rows) for row in rows}
    weight = np.array([len(rows) / len(counts) / counts[row.paper] for row in rows])
    truth = np.log([row.seconds for row in rows])
    place = start.copy()

    def residual(at: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.log(predict(rows, np.exp(at))) - truth

    def loss(at: NDArray[np.float64]) -> float:
        # Pseudo-Huber at 10 %: a few rows on odd software shall not bend the rest.
        return float(
            (weight * (np.sqrt(1 + (residual(at) / 0.1) ** 2) - 1)).sum() * 0.01 + ((at - start) ** 2).sum() / prior**2 * 0.01
        )

    now, damping = loss(place), 0.1
    for _ in range(rounds):
        error = residual(place)
        slope = np.stack([(residual(place + 0.02 * axis) - error) / 0.02 for axis in np.eye(len(place))], axis=1)
        robust = weight / np.sqrt(1 + (error / 0.1) ** 2)
        normal = slope.T @ (robust[:, None] * slope) + np.eye(len(place)) * 0.02 / prior**2
        gradient = slope.T @ (robust * error) + (place - start) * 0.02 / prior**2
        while damping < 1e4:
            candidate = place - np.linalg.solve(normal + damping * np.diag(np.diag(normal)), gradient)
            if (tried := loss(candidate)) < now:
                place, now, damping = candidate, tried, damping / 3
                break
            damping *= 4
        else:
            break
    return np.exp(place)


# Where the fit starts, before any published run was seen: plain physics with nothing hidden.
START = Fit(
    matmul=1.0, operands=1.0, attention=1.0, elementwise=28.0, exposed_tensor=1.0, exposed_experts=1.0, exposed_shards=0.3,
    launch_us=100.0,
)  # fmt: skip


def naive(train: list[Row], rows: list[Row]) -> NDArray[np.float64]:
    """Seconds by the median MFU of the training rows on the same card, or on any card where there are none."""
    guesses = []
    for row in rows:
        same = [other.mfu for other in train if other.cluster.chip == row.cluster.chip] or [other.mfu for other in train]
        guesses.append(row.seconds * row.mfu / float(np.median(same)))
    return np.array(guesses)


def error(ratios: Sequence[float] | NDArray[np.float64]) -> str:
    """Mean error of the step's time, and of MFU, from predicted over published seconds."""
    values = np.asarray(ratios, dtype=float)
    return f"{np.abs(values - 1).mean():.1%} / {np.abs(1 / values - 1).mean():.1%}"


def search_seconds() -> tuple[float, int]:
    """Best of five whole searches: a 148 B sparse model over 18,432 cards."""
    sizes = Sizes(
        layers=48, dim=5120, heads=40, kv_heads=8, head_dim=128, vocab=152_064, experts=128, experts_per_token=8,
        expert_dim=1536, shared_experts=1, dense_layers=1, dense_dim=12_288,
    )  # fmt: skip
    chip = CHIPS["ascend-910b"]
    problem = Problem(sizes, Work(4096, 18_432), Cluster(2304, 8, chip, chip.memory_gb))
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        found = search(problem)
        times.append(time.perf_counter() - begin)
    return min(times), found.tried


def main() -> None:
    path = Path(os.environ.get("NINTHSKY_DATA", "../shared/data")) / "scale" / "published_runs_open.csv"
    if not path.exists():
        sys.exit(f"no published runs at {path}: set NINTHSKY_DATA")
    rows = read(path)
    papers = sorted({row.paper for row in rows})
    table: list[list[object]] = []
    figures: dict[str, object] = {"rows": len(rows), "inside_domain": sum(row.inside for row in rows)}
    held: list[float] = []  # predicted over published seconds, held out, inside the domain
    rival: list[float] = []
    in_sample: list[float] = []
    shipped = np.array([*astuple(Fit()), UNFUSED])
    for paper in papers:
        train, test = [row for row in rows if row.paper != paper], [row for row in rows if row.paper == paper]
        truth = np.array([row.seconds for row in test])
        ours, theirs = predict(test, fitted(train)) / truth, naive(train, test) / truth
        inside = np.array([row.inside for row in test])
        for name, mask in (("inside", inside), ("outside", ~inside)):
            if mask.any():
                table.append([f"{paper}, {name} the domain, {mask.sum()} runs", error(ours[mask]), error(theirs[mask])])
                figures[f"{paper}_{name}_step_error"] = float(np.abs(ours[mask] - 1).mean())
        held += ours[inside].tolist()
        rival += theirs[inside].tolist()
        in_sample += (predict(test, shipped) / truth)[inside].tolist()
    table.append([f"all {len(held)} inside, held out", error(held), error(rival)])
    table.append(["the same by the shipped constants (fitted on all: not held out)", error(in_sample), ""])
    for name, ratios in (("held_out", held), ("naive", rival), ("in_sample", in_sample)):
        figures[f"{name}_step_error"] = float(np.abs(np.array(ratios) - 1).mean())
        figures[f"{name}_mfu_error"] = float(np.abs(1 / np.array(ratios) - 1).mean())
    figures |= median_interval(np.abs(np.array(held) - 1).tolist(), "held_out_step_median_error")
    every = fitted(rows)
    for name, value, now in zip(FITTED, every, astuple(Fit()), strict=False):
        table.append([f"constant {name}: fitted on all rows", f"{value:.4g}", f"shipped {now:.4g}"])
        figures[f"constant_{name}"] = float(value)
    seconds, tried = search_seconds()
    table.append([f"148 B sparse model over 18,432 cards, {tried:,} cuts", f"{seconds:.3f} s", "goal < 1 s"])
    figures |= {"search_seconds": seconds, "search_cuts": tried}
    publish("layout", table, figures, ("mean error of step time / of MFU", "ours", "naive: median MFU of the card"))


if __name__ == "__main__":
    main()
