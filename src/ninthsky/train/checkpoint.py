"""Checkpoints that any mesh can load: torch DCP, checked on the way out and on the way in."""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import xxhash
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save
from torch.distributed.tensor import DTensor

from ninthsky.errors import UserError
from ninthsky.model.experts import Router
from ninthsky.train.trainer import Trainer

FORMAT = 1
SEAL = "seal.json"  # written last: sizes and checksums of all other files
_NAME = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Saved:
    """What became of a checkpoint: its folder, or the reason why there is none."""

    step: int
    path: Path | None
    problem: str = ""


@dataclass(frozen=True)
class Restored:
    """Where a trainer stands now, and which newer checkpoints were refused, with the reason."""

    step: int
    path: Path | None
    refused: dict[str, str] = field(default_factory=dict)


def save(
    trainer: Trainer,
    folder: Path,
    may_commit: Callable[[], bool] = lambda: True,
    keep: int = 2,
    notes: dict[str, bytes] | None = None,
) -> Saved:
    """Writes `folder/step-N`, N the number of finished steps (collective). A failure is told, never raised.

    Every rank checks its own state to be finite and reads back what it wrote; files are checksummed, the seal is written
    last, and `may_commit` is asked on rank 0 before the checkpoint becomes visible: a stale generation says no. Older ones go
    only after that, but for `keep`.
    `notes` are rank 0's files that belong to this very state, sealed with it.
    """
    step, rank = trainer.step, dist.get_rank() if trainer.distributed else 0
    final = folder / f"step-{step}"
    partial = folder / f".step-{step}.part"
    problem = "" if _finite(trainer) else f"rank {rank}: state is not finite"
    problem = _first(trainer, problem)
    if problem:
        return Saved(step, None, problem)
    if rank == 0:
        problem = _attempt(lambda: _empty(partial))
    for work in (_write, _read_back):
        if not (problem := _first(trainer, problem)):
            problem = _attempt(functools.partial(work, trainer, partial))
    if not (problem := _first(trainer, problem)) and rank == 0:
        problem = _attempt(lambda: _seal(partial, step, notes or {})) or (
            "" if may_commit() else "this generation may no longer commit"
        )
        if not problem:
            problem = _attempt(lambda: _publish(partial, final))
    problem = _first(trainer, problem)
    if rank == 0:
        if problem:
            shutil.rmtree(partial, ignore_errors=True)
        else:
            for old in checkpoints(folder)[keep:]:
                shutil.rmtree(old, ignore_errors=True)
    return Saved(step, None if problem else final, problem)


def restore(trainer: Trainer, folder: Path) -> Restored:
    """Loads the newest good checkpoint of `folder` into the trainer, whatever mesh wrote it (collective).

    Bad ones are refused with the reason and the one before is tried; with none left the trainer stays as it was built.
    Raises UserError N9-TRN-003 where a checkpoint is whole and does not fit: another model's.
    """
    chosen: list[Any] = [None, {}]
    if not trainer.distributed or dist.get_rank() == 0:
        chosen = [*newest_good(folder)]
    if trainer.distributed:
        dist.broadcast_object_list(chosen, src=0)
    path, refused = chosen
    if path is None:
        return Restored(trainer.step, None, refused)
    state = trainer.distributed_state()
    if problem := _attempt(lambda: _load(state, path, alone=not trainer.distributed)):
        raise UserError("N9-TRN-003", f"{path.name}: {problem}", str(path), "it is of another model: take another folder")
    trainer.step = int(state["step"])
    return Restored(trainer.step, path, refused)


def newest_good(folder: Path) -> tuple[Path | None, dict[str, str]]:
    """The newest checkpoint that passes `check`, and those that did not: name -> reason."""
    refused: dict[str, str] = {}
    for path in checkpoints(folder):
        problem = check(path)
        if not problem:
            return path, refused
        refused[path.name] = problem
    return None, refused


def load_weights(model: nn.Module, path: Path) -> int:
    """Weights of one checkpoint into an uncut module, whatever mesh wrote it; -> its step.

    Raises UserError N9-TRN-003 where the checkpoint is bad, or of another model.
    """
    problem = check(path)
    if not problem:
        state = {f"weight/{name}": parameter.data for name, parameter in model.named_parameters()}
        routers = [(name, module) for name, module in model.named_modules() if isinstance(module, Router)]
        state |= {f"bias/{name}": router.e_score_correction_bias for name, router in routers}
        state["step"] = torch.zeros((), dtype=torch.int64)
        problem = _attempt(lambda: _load(state, path, alone=True))
    if problem:
        raise UserError("N9-TRN-003", f"{path.name}: {problem}", str(path), "n9 train check FOLDER: which ones are good")
    return int(state["step"])


def checkpoints(folder: Path) -> list[Path]:
    """Visible checkpoints, newest first; good or not."""
    found = [(int(match[1]), path) for path in folder.glob("step-*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def check(path: Path) -> str:
    """Why a checkpoint is not to be loaded; empty for a good one. Reads every byte."""
    try:
        seal = json.loads((path / SEAL).read_bytes())
        files, checksum = seal["files"], seal["xxh3"]
        if seal["format"] != FORMAT:
            return f"format {seal['format']}, this release reads {FORMAT}"
        if xxhash.xxh3_128_hexdigest(_canonical(files, seal["step"])) != checksum or path.name != f"step-{seal['step']}":
            return f"{SEAL} was altered"
        for name, wanted in files.items():
            if not (path / name).is_file():
                return f"{name} is missing"
            if (size := (path / name).stat().st_size) != wanted["size"]:
                return f"{name} has {size} bytes of {wanted['size']}"
            if _digest(path / name) != wanted["xxh3"]:
                return f"{name}: its checksum differs"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{SEAL}: {type(error).__name__}: {error}"
    return ""


def _finite(trainer: Trainer) -> bool:
    for tensor in trainer.distributed_state().values():
        local = _local(tensor)
        if local.is_floating_point() and not bool(torch.isfinite(local).all()):
            return False
    return True


def _first(trainer: Trainer, problem: str) -> str:
    """The first rank's problem, agreed on by all."""
    if not trainer.distributed:
        return problem
    problems: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    return next(filter(None, problems), "")


def _attempt(work: Callable[[], object]) -> str:
    """Empty, or what went wrong on this disk. A failed save must not end the run."""
    try:
        work()
    except (OSError, RuntimeError, CheckpointException) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _write(trainer: Trainer, partial: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is meant
        writer = FileSystemWriter(partial, sync_files=True)
        dcp_save(trainer.distributed_state(), storage_writer=writer, no_dist=not trainer.distributed)


def _read_back(trainer: Trainer, partial: Path) -> None:
    """Raises OSError where the files do not give back, bit by bit, what this rank holds."""
    state = trainer.distributed_state()
    found = {name: torch.empty_like(tensor) for name, tensor in state.items()}
    _load(found, partial, alone=not trainer.distributed)
    for name, tensor in state.items():
        if not torch.equal(_local(found[name]), _local(tensor)):
            raise OSError(f"{name} came back from the disk otherwise than it was written")


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _load(state: dict[str, Any], path: Path, alone: bool) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp_load(state, storage_reader=_PlainReader(path), no_dist=alone)


def _empty(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)


def _seal(partial: Path, step: int, notes: dict[str, bytes]) -> None:
    for name, content in notes.items():
        (partial / name).write_bytes(content)
    files = {path.name: {"size": path.stat().st_size, "xxh3": _digest(path)} for path in sorted(partial.iterdir())}
    seal = {"format": FORMAT, "step": step, "files": files, "xxh3": xxhash.xxh3_128_hexdigest(_canonical(files, step))}
    with (partial / SEAL).open("w") as file:
        json.dump(seal, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _publish(partial: Path, final: Path) -> None:
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)


def _canonical(files: dict[str, Any], step: int) -> bytes:
    return json.dumps([step, files], sort_keys=True).encode()


def _digest(path: Path) -> str:
    hasher = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            hasher.update(block)
    return hasher.hexdigest()


class _PlainUnpickler(pickle.Unpickler):
    """DCP's metadata is a pickle: only the classes that it is made of are let in, so that a file can run nothing."""

    MODULES = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
    NAMES = frozenset(
        {
            ("torch", "Size"),
            ("torch", "device"),
            ("torch.serialization", "_get_layout"),
            ("torch.storage", "_load_from_bytes"),
            ("builtins", "getattr"),
            ("pathlib", "PosixPath"),
            ("torch._C._distributed_c10d", "_SymmetricMemory"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not (module in self.MODULES or (module, name) in self.NAMES or dtype):
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a checkpoint")
        return super().find_class(module, name)


class _PlainReader(FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        metadata = _PlainUnpickler(io.BytesIO((Path(self.path) / ".metadata").read_bytes())).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError("not the metadata of a checkpoint")
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata
