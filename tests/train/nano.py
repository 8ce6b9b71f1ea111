"""A training job of four real ranks at the smallest shape, on made tokens, as tests start it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models

from ninthsky.config.load import parse_settings
from ninthsky.guard.job import HostSpec, Injected, JobResult, JobSpec, Watch, run_job
from ninthsky.model.shape import Shape
from ninthsky.run.engine import run_stage
from ninthsky.run.folder import RunFolder, write_json
from ninthsky.run.progress import PlainScreen
from ninthsky.train.cut.mesh import Mesh
from ninthsky.train.inject import Fault
from ninthsky.train.job import TrainJob
from ninthsky.train.stages import STAGES
from ninthsky.train.step.recipe import Recipe

VOCAB = 64
SHAPE = Shape(vocab=VOCAB, layers=2, dim=16, heads=2, kv_heads=1, experts=4, experts_per_token=2, expert_dim=16, dense_dim=32)
MESH = Mesh(dp_shard=4, ep=2)


def write_tokens(folder: Path) -> Path:
    """A made language of 20,000 tokens in which each token has four successors."""
    rng = np.random.default_rng(0)
    successors = rng.integers(6, VOCAB, size=(VOCAB, 4))
    tokens = np.empty(20_000, dtype="<u2")
    tokens[0] = 6
    for place in range(1, len(tokens)):
        tokens[place] = successors[tokens[place - 1], rng.integers(4)]
    folder.mkdir(parents=True)
    splits = {}
    for name, part in (("train", tokens[:18_000]), ("held_out", tokens[18_000:])):
        part.tofile(folder / f"{name}.bin")
        half = len(part) // 2
        parts = [{"source": "made", "language": language, "start": start, "tokens": half, "documents": 1, "bytes": 2 * half}
                 for language, start in (("en", 0), ("zh", half))]  # fmt: skip
        splits[name] = {"file": f"{name}.bin", "tokens": len(part), "documents": 1, "parts": parts}
    (folder / "index.json").write_text(json.dumps({"format": 1, "dtype": "uint16", "vocab": VOCAB, "eos": 1, "splits": splits}))
    words = {f"w{token}": token for token in range(VOCAB)}
    Tokenizer(models.WordLevel(words, unk_token="w0")).save(str(folder / "tokenizer.json"))
    return folder


def make_job(tokens: Path, folder: Path, steps: int, faults: list[Fault] | None = None, **changes: Any) -> TrainJob:
    folder.mkdir(parents=True, exist_ok=True)
    given: dict[str, Any] = {
        "shape": SHAPE, "recipe": Recipe(), "mesh": MESH, "tokens": str(tokens), "folder": str(folder), "steps": steps,
        "sequence": 16, "batch": 8, "seed": 3, "checkpoint_every": 20, "faults": faults or [],
        "events": str(folder / "events.jsonl"),
    }  # fmt: skip
    return TrainJob(**{**given, **changes})


def run_guarded(
    job: TrainJob,
    on_event: Callable[[dict[str, Any]], None] | None = None,
    spares: int = 1,
    hosts: list[HostSpec] | None = None,
    **watch: Any,
) -> JobResult:
    """Two hosts of two ranks."""
    folder = Path(job.folder)
    path = job.save(folder / "train.json")
    spec = JobSpec(
        run_id=f"t-{os.getpid()}-{folder.name}",
        folder=str(folder / "guard"),
        command=[sys.executable, "-m", "ninthsky.train.rank.elastic", str(path)],
        world=4,
        worlds=[mesh.ranks for mesh in job.fewer],
        hosts=hosts or [HostSpec(name=f"host-{host}", slots=2, spares=spares) for host in range(2)],
        env={"OMP_NUM_THREADS": "1"},
        watch=Watch(**{"action": "act", "kernel_log": "off", "selftest": "off", **watch}),
        injected=[
            Injected(fault.kind, fault.rank, fault.step, fault.attempt)  # type: ignore[arg-type]
            for fault in job.faults
            if fault.kind != "rate"
        ],
        events=job.events,
    )
    return run_job(spec, on_event)


def run_training(folder: Path, text: str, *names: str) -> None:
    """Stages of the training room, `text` being their run.toml; what stands before them is made up where it is missing."""
    settings = parse_settings(text, "run.toml")
    run = RunFolder(folder)
    for name in ("data.tokens", "layout"):
        if not (run.stage(name) / "manifest.json").exists():
            if name == "layout":
                write_json(run.stage(name) / "mesh.json", {"dp_shard": 4, "ep": 2})
            else:
                write_tokens(run.stage(name) / "tokens")
            write_json(run.stage(name) / "manifest.json", {"digest": name})
    for stage in STAGES:
        if stage.name in names:
            run_stage(run, settings, stage, PlainScreen(), fresh=False)
