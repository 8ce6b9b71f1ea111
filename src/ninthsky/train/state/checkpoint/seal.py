"""The seal of a checkpoint folder: which files belong to it, how long they are, and their checksums. No torch here.

`step-N/seal.json`: {"format", "step", "files": {name: {"size", "xxh3"}}, "xxh3"}; the last is over step and files. It is
written last, so a folder without a right one was never finished.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import xxhash

FORMAT = 1
SEAL = "seal.json"
_NAME = re.compile(r"step-(\d+)")
_BLOCK = 1 << 20

Files = dict[str, dict[str, Any]]  # name -> {"size": bytes, "xxh3": xxh3-128, hex}


def checkpoints(folder: Path) -> list[Path]:
    """Visible checkpoints, newest first; good or not."""
    found = [(int(match[1]), path) for path in folder.glob("step-*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def step_of(path: Path) -> int:
    """Finished steps of a checkpoint, from its name."""
    return int(path.name.removeprefix("step-"))


def set_aside(folder: Path, newest: int) -> list[Path]:
    """Renames checkpoints of more finished steps than `newest` to `distrusted-step-N`: kept for people, never loaded.
    -> their names before."""
    later = [path for path in checkpoints(folder) if step_of(path) > newest]
    for path in later:
        target = path.with_name(f"distrusted-{path.name}")
        shutil.rmtree(target, ignore_errors=True)  # of an earlier rollback
        path.rename(target)
    return later


def newest_good(folder: Path) -> tuple[Path | None, dict[str, str]]:
    """The newest checkpoint that passes `check`, and those that did not: name -> reason."""
    refused: dict[str, str] = {}
    for path in checkpoints(folder):
        problem = check(path)
        if not problem:
            return path, refused
        refused[path.name] = problem
    return None, refused


def check(path: Path, share: int = 0, shares: int = 1) -> str:
    """Why a checkpoint is not to be loaded; empty for a good one. Reads every byte of this share of its files."""
    try:
        seal = json.loads((path / SEAL).read_bytes())
        if problem := _foreign(seal["format"]):
            return problem
        files, step = seal["files"], seal["step"]
        if _checksum(files, step) != seal["xxh3"] or path.name != f"step-{step}":
            return f"{SEAL} was altered"
        for name in sorted(files)[share::shares]:
            size = (path / name).stat().st_size if (path / name).is_file() else -1
            if size < 0:
                return f"{name} is missing"
            if size != files[name]["size"]:
                return f"{name} has {size} bytes of {files[name]['size']}"
            if digest_of(path / name) != files[name]["xxh3"]:
                return f"{name}: its checksum differs"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{SEAL}: {type(error).__name__}: {error}"
    return ""


def seal(folder: Path, step: int, files: Files) -> None:
    """Writes the seal and brings it, and the folder's names, to the disk."""
    content = {"format": FORMAT, "step": step, "files": files, "xxh3": _checksum(files, step)}
    write_synced(folder / SEAL, json.dumps(content, indent=1).encode())
    sync_folder(folder)


def describe(path: Path) -> dict[str, Any]:
    """A file's entry in the seal."""
    return {"size": path.stat().st_size, "xxh3": digest_of(path)}


def digest_of(path: Path) -> str:
    """xxh3-128 of a file, in hex."""
    hasher = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            hasher.update(block)
    return hasher.hexdigest()


def write_synced(path: Path, content: bytes) -> None:
    """Writes a file and brings it to the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """After it the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _foreign(format: Any) -> str:
    if format == FORMAT:
        return ""
    if isinstance(format, int) and format > FORMAT:
        return f"format {format} was written by a newer release, this one reads {FORMAT}: update ninthsky"
    return f"format {format} is none that this release reads ({FORMAT}): export it with the release that wrote it"


def _checksum(files: Files, step: int) -> str:
    return str(xxhash.xxh3_128_hexdigest(json.dumps([step, files], sort_keys=True).encode()))
