"""Peers live in environments of their own, under .cache, made the first time: their pins never meet ours."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def interpreter(name: str, *packages: str) -> str:
    """The Python of the environment `name`, with exactly these requirements installed."""
    folder = ROOT / ".cache" / name
    python = folder / "bin" / "python"
    ready = folder / "ready"
    if not ready.exists() or ready.read_text() != " ".join(packages):
        print(f"making {folder} with {' '.join(packages)} ...", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        ready.write_text(" ".join(packages))
    return str(python)


class Peer:
    """A peer's program in a process of its own: one frame of bytes in, one line of JSON out."""

    def __init__(self, python: str, program: str) -> None:
        self._process = subprocess.Popen(
            [python, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def __call__(self, data: bytes) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(struct.pack("<I", len(data)) + data)
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())
