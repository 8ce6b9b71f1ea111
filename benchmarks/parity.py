"""Every cut, alone and together with others, against one process: the same losses, gradients and weights, up to rounding.

`python -m benchmarks.parity [--ranks 4 8]`. Plain SGD with a large rate, no clipping, fp32: a gradient of the wrong size shows
at once, where Adam would hide it. Ranks are forked once for each world and go through all meshes; what they hold, and the bytes
that they hand to collectives, are held against the formulas of train/cut/memory.py and train/cut/traffic.py.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks import counting
from benchmarks.report import publish
from ninthsky.model import Decoder, Shape
from ninthsky.train.cut import parallel
from ninthsky.train.cut.memory import state_bytes
from ninthsky.train.cut.mesh import Mesh
from ninthsky.train.cut.traffic import traffic
from ninthsky.train.step.loss import document_loss, next_token_loss
from ninthsky.train.step.recipe import Recipe
from ninthsky.train.step.trainer import Gate, Trainer

SHAPE = Shape(
    vocab=101,
    layers=4,
    dim=32,
    heads=8,
    kv_heads=4,
    experts=8,
    experts_per_token=2,
    expert_dim=24,
    dense_layers=1,
    dense_dim=48,
)
ROWS, LENGTH, STEPS = 16, 16, 3
LIMIT = 1e-5
LAYER = 20_000  # bytes: about one layer


@dataclass(frozen=True)
class Case:
    """A mesh, in how many micro-batches each rank's rows go through it, and whether activations are recomputed.

    `unit` is the size up to which weights are gathered together: all at once, or a layer at a time. `length` counts
    positions; from 256 on a CPU's attention is the one of model/fused.py. `packed` rows hold documents that do not see each
    other.
    """

    mesh: Mesh
    micro_batches: int = 1
    recompute: bool = False
    unit: int = parallel.UNIT_BYTES
    length: int = LENGTH
    packed: bool = False

    @property
    def name(self) -> str:
        """`pp2 dp_shard2 ep2 tp2, 4 micro-batches`"""
        cuts = [f"{f.name}{value}" for f in fields(Mesh) if isinstance(value := getattr(self.mesh, f.name), int) and value > 1]
        extra: list[str] = [self.mesh.schedule] if self.mesh.pp > 1 else []
        extra += [f"{self.micro_batches} micro-batches"] if self.micro_batches > 1 else []
        extra += [f"{self.length} positions"] if self.length != LENGTH else []
        extra += ["packed documents"] if self.packed else []
        extra += ["a layer at a time"] if self.unit < parallel.UNIT_BYTES else []
        return ", ".join([" ".join(cuts), *extra, *(["recomputed"] if self.recompute else [])])


CASES = {
    4: [
        Case(Mesh(dp_shard=4)),
        Case(Mesh(dp_replicate=4)),
        Case(Mesh(dp_replicate=2, dp_shard=2), 2),
        Case(Mesh(dp_shard=4, ep=2), unit=LAYER),
        Case(Mesh(dp_replicate=2, dp_shard=2, ep=4)),
        Case(Mesh(cp=4)),
        Case(Mesh(dp_shard=2, cp=2)),
        Case(Mesh(tp=4)),
        Case(Mesh(dp_shard=2, tp=2), unit=LAYER),
        Case(Mesh(dp_replicate=2, tp=2, ep=2)),
        Case(Mesh(cp=2, tp=2, ep=4), 2, recompute=True),
        Case(Mesh(cp=2, tp=2), length=256, packed=True),
        Case(Mesh(pp=2, cp=2), 2, length=64, packed=True),
        Case(Mesh(pp=4), 4),
        Case(Mesh(pp=2, parts=2, dp_shard=2, schedule="interleaved"), 4),
        Case(Mesh(pp=2, tp=2, schedule="zero-bubble"), 4),
        Case(Mesh(pp=2, cp=2, ep=2), 2),
    ],
    8: [
        Case(Mesh(dp_shard=8, ep=4)),
        Case(Mesh(dp_replicate=2, dp_shard=4, ep=8)),
        Case(Mesh(dp_shard=2, cp=2, tp=2, ep=8)),
        Case(Mesh(dp_replicate=2, dp_shard=2, tp=2, ep=2)),
        Case(Mesh(pp=2, dp_shard=2, ep=2, tp=2), 4),
        Case(Mesh(pp=2, dp_shard=2, ep=4, tp=2, schedule="zero-bubble"), 4),
        Case(Mesh(pp=2, dp_replicate=2, cp=2, ep=2), 2, recompute=True),
        Case(Mesh(pp=2, parts=2, cp=2, tp=2, ep=4, schedule="interleaved"), 2),
        Case(Mesh(pp=4, dp_shard=2, ep=2), 4),
    ],
}


def batch(step: int, length: int) -> Tensor:
    """The same rows on every rank: LongTensor [ROWS, length + 1]."""
    return torch.randint(6, SHAPE.vocab, (ROWS, length + 1), generator=torch.Generator().manual_seed(step))


def trained(case: Case) -> tuple[Trainer, str, list[float], list[float]]:
    """Trainer after STEPS on this process's rank of the case's mesh, or alone; digest before; losses and gradient norms."""
    mesh = case.mesh if case.mesh.ranks > 1 else None
    recipe = Recipe(
        lr=1.0, optimizer="sgd", weight_decay=0.0, warmup=0.0, schedule="constant", clip=0.0,
        micro_batches=case.micro_batches, recompute="layer" if case.recompute else "none",
    )  # fmt: skip
    loss = partial(document_loss, eos=7) if case.packed else next_token_loss
    trainer = Trainer(Decoder(SHAPE, held=mesh is None), loss, recipe, STEPS, mesh)
    drawn, losses, norms = trainer.digest(), [], []
    for step in range(STEPS):
        counting.counted.clear()
        rows = batch(step, case.length)
        if mesh is not None:
            share, at = ROWS // mesh.data_ranks, mesh.data_rank(dist.get_rank())
            rows = rows[share * at : share * (at + 1)]
        trainer.local_gradients(rows)
        figures = trainer.apply(Gate.total(trainer.gather(trainer.gate_values())))
        losses.append(figures.loss)
        norms.append(figures.norm)
    return trainer, drawn, losses, norms


def compare(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """For each case: largest differences to one process; what this rank held and sent, counted and by formula (collective)."""
    rank, rows = dist.get_rank(), []
    data = {(case.length, case.packed) for case in cases}
    references = {(length, packed): trained(Case(Mesh(), length=length, packed=packed)) for length, packed in data}
    for case in cases:
        alone, wanted_drawn, wanted_losses, wanted_norms = references[case.length, case.packed]
        wanted = alone.whole_state()
        begin = time.perf_counter()
        parallel.UNIT_BYTES = case.unit
        trainer, drawn, losses, norms = trained(case)
        last = Counter(counting.counted)  # of the last step
        state = trainer.whole_state()
        assert state.keys() == wanted.keys()
        held = sum(piece.local.numel() for piece in trainer.pieces)
        share = ROWS // case.mesh.data_ranks
        formula = traffic(SHAPE, case.mesh, rank, share, case.length, case.micro_batches, again=case.recompute)
        rows.append({
            "case": case.name,
            "loss": max(abs(a - b) for a, b in zip(losses, wanted_losses, strict=True)),
            "norm": max(abs(a - b) / b for a, b in zip(norms, wanted_norms, strict=True)),
            "weights": max(float((state[name] - wanted[name]).abs().max()) for name in wanted),
            "drawn": drawn == wanted_drawn,
            "digest": trainer.digest(),
            "held": held,
            "held_formula": state_bytes(SHAPE, case.mesh, rank),
            "state": sum(t.nbytes for t in trainer.state_shard().values()) + _adam(trainer),
            "sent": last,
            "sent_formula": formula,
            "seconds": time.perf_counter() - begin,
        })  # fmt: skip
    return rows


def _adam(trainer: Trainer) -> int:
    """What AdamW would hold beside the weights: SGD, which is run here, holds nothing."""
    return sum(2 * piece.local.nbytes + 4 for piece in trainer.pieces if piece.local.numel())


def _rank(rank: int, world: int, meeting: str, cases: Sequence[Case], answers: Any) -> None:
    torch.set_num_threads(1)
    counting.register()
    dist.init_process_group(counting.BACKEND, init_method=f"file://{meeting}", rank=rank, world_size=world)
    answers.put((rank, compare(cases)))
    dist.barrier()
    dist.destroy_process_group()


def on_ranks(world: int, cases: Sequence[Case], seconds: float = 500.0) -> list[list[dict[str, Any]]]:
    """Rows of every rank: forked from this process, so that nothing is imported again."""
    context = mp.get_context("fork")
    answers: Any = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        meeting = str(Path(folder) / "meeting")
        ranks = [
            context.Process(target=_rank, args=(rank, world, meeting, cases, answers), daemon=True) for rank in range(world)
        ]
        for process in ranks:
            process.start()
        until = time.monotonic() + seconds
        found: dict[int, list[dict[str, Any]]] = {}
        while len(found) < world:
            if not answers.empty():
                rank, rows = answers.get()
                found[rank] = rows
            elif any(process.exitcode for process in ranks) or time.monotonic() > until:
                for process in ranks:
                    process.kill()
                raise RuntimeError(f"ranks ended with {[process.exitcode for process in ranks]}")
            else:
                time.sleep(0.02)
        for process in ranks:
            process.join()
    return [found[rank] for rank in range(world)]


def judge(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One case over all its ranks."""
    sent: Counter[tuple[str, int]] = sum((row["sent"] for row in rows), Counter())
    wanted: Counter[tuple[str, int]] = sum((row["sent_formula"] for row in rows), Counter())
    return {
        "case": rows[0]["case"],
        "worst": max(max(row["loss"], row["weights"]) for row in rows),
        "norm": max(row["norm"] for row in rows),
        "drawn": all(row["drawn"] for row in rows),
        "agree": len({row["digest"] for row in rows}) == 1,
        "held": sum(row["state"] for row in rows) / len(rows),
        "held_equal": all(row["state"] == row["held_formula"] for row in rows),
        "sent": sum(sent.values()) / len(rows),
        "sent_equal": sent == wanted,
        "seconds": max(row["seconds"] for row in rows),
    }


# -- the 119 B model on one rank of 18,432 ------------------------------------------------------------------------------

GREAT = Shape(
    vocab=131_072, layers=48, dim=4096, heads=32, kv_heads=8, head_dim=128,
    experts=128, experts_per_token=8, expert_dim=1536, shared_experts=0, dense_layers=0,
)  # fmt: skip
GREAT_MESH = Mesh(pp=8, dp_replicate=9, dp_shard=64, tp=4, ep=16)


def build_great(rank: int) -> dict[str, float]:
    """Builds that rank's part, weights and AdamW's state, in this process, with a process group that answers at once."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    begin, cpu = time.perf_counter(), time.process_time()
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=GREAT_MESH.ranks)
    recipe = Recipe(micro_batches=GREAT_MESH.pp)
    trainer = Trainer(Decoder(GREAT, seed=None, held=False), next_token_loss, recipe, 1, GREAT_MESH, torch.device("cpu"))
    held = sum(tensor.nbytes for tensor in trainer.state_shard().values())
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu
    dist.destroy_process_group()
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "held": held, "formula": state_bytes(GREAT, GREAT_MESH, rank)}


def _great(rank: int) -> None:
    torch.set_num_threads(1)
    found = build_great(rank)
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(float(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20
    print(json.dumps({**found, "gib": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="*", default=[4, 8])
    parser.add_argument("--great", type=int, help="build this rank's part of the 119 B model and say what it took")
    options = parser.parse_args()
    if options.great is not None:
        return _great(options.great)
    table: list[list[Any]] = []
    found: list[dict[str, Any]] = []
    for world in options.ranks:
        answers = on_ranks(world, CASES[world])
        for number in range(len(CASES[world])):
            row = judge([rows[number] for rows in answers])
            found.append(row)
            equal = {True: "= formula", False: "NOT the formula's"}
            state, wire = equal[row["held_equal"]], equal[row["sent_equal"]]
            table.append([
                f"{world} ranks: {row['case']}", f"{row['worst']:.1e}", f"{row['norm']:.1e}",
                f"{row['held'] / 2**10:.1f} KiB {state}", f"{row['sent'] / 2**10:.0f} KiB {wire}",
            ])  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.parity", "--great", "12345"]
    great = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    table.append([
        "119 B on rank 12,345 of 18,432", "", "", f"{great['held'] / 2**20:.1f} MiB, formula {great['formula'] / 2**20:.1f}",
        f"built in {great['seconds']:.1f} s, {great['gib']:.2f} GiB peak",
    ])  # fmt: skip
    figures = {
        "parity_max": max(row["worst"] for row in found),
        "parity_norm_max": max(row["norm"] for row in found),
        "parity_meshes": len(found),
        "parity_within": sum(row["worst"] <= LIMIT for row in found),
        "drawn_equal": sum(row["drawn"] for row in found),
        "ranks_agree": sum(row["agree"] for row in found),
        "held_equal": sum(row["held_equal"] for row in found),
        "wire_equal": sum(row["sent_equal"] for row in found),
        "great_seconds": great["seconds"],
        "great_cpu_seconds": great["cpu_seconds"],
        "great_gib": great["gib"],
        "great_equal": great["held"] == great["formula"],
    }
    columns = (
        "mesh",
        "largest difference of loss or weight",
        "of norm, relative",
        "state per rank",
        "to collectives per rank and step",
    )
    publish("parity", table, figures, columns)


if __name__ == "__main__":
    main()
