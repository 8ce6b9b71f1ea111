"""`n9 model`: published shapes, the shape of a Hugging Face folder as a [model] block, and such a folder as an export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from ninthsky.errors import OK

app = App(name="model", help="Shapes: published ones by name, and what a Hugging Face Glm4Moe folder holds.")
Json = Annotated[bool, Parameter(name="--json", negative=())]


@app.command
def presets(*, json_: Json = False) -> int:
    """Published shapes for `[model] preset = "NAME"`: parameters as counted here, beside what their sources state."""
    from ninthsky.config.load import parse_settings
    from ninthsky.config.presets import PRESETS
    from ninthsky.model.shape import Shape

    rows, lines = [], [f"{'preset':18s}{'total':>10s}{'active':>10s}{'stated':>14s}  layers x dim, experts, of which chosen"]
    for name, preset in PRESETS.items():
        shape = Shape.of(parse_settings(f'[model]\npreset = "{name}"', name).model, preset.vocab)
        total, active = shape.parameters(), shape.active_parameters()
        rows.append(
            {"preset": name, "parameters": total, "active_parameters": active, "stated": [preset.total, preset.active]}
            | {"source": preset.source, "notes": preset.notes, "vocab": preset.vocab, "model": preset.model}
        )
        what = f"{shape.layers} x {shape.dim}, {shape.experts}, {shape.experts_per_token}"
        lines.append(
            f"{name:18s}{total / 1e9:9.1f}B{active / 1e9:9.1f}B{preset.total:>9s}{preset.active:>5s}  {what}"
            + f"\n{'':18s}{preset.source}" * bool(preset.source)
            + f"\n{'':18s}{preset.notes}" * bool(preset.notes)
        )
    return _tell({"presets": rows}, lines, json_)


@app.command
def show(folder: Path, *, json_: Json = False) -> int:
    """The shape that a Glm4Moe folder describes, as a [model] block, with its parameters. config.json is enough.

    Parameters
    ----------
    folder
        Folder with config.json, such as a download from Hugging Face or an export of a run.
    """
    from ninthsky.model.files import read_shape

    shape = read_shape(folder)
    total, active = shape.parameters(), shape.active_parameters()
    lines = [f"# {total:,} parameters, {active:,} active, vocabulary {shape.vocab:,}", "[model]"]
    lines += [f"{name} = {_toml(value)}" for name, value in shape.block().items()]
    tree = {"parameters": total, "active_parameters": active, "vocab": shape.vocab, "model": shape.block()}
    return _tell(tree, lines, json_)


@app.command(name="import")
def import_(
    folder: Path, out: Path, *, dtype: Literal["fp32", "bf16"] = "fp32", shard_gb: float = 5.0, json_: Json = False
) -> int:
    """Reads a Glm4Moe folder (one file or shards, fp32, bf16 or fp16) and writes it as an export of ours.

    Parameters
    ----------
    folder
        Folder with config.json and *.safetensors.
    out
        Folder to write. Tokenizer and token ids go along.
    dtype
        Of the weights that are written.
    shard_gb
        Largest file of weights, in 2^30 bytes.
    """
    import torch

    from ninthsky.model.files import convert

    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    total = convert(folder, out, kind, int(shard_gb * 2**30)).shape.parameters()
    return _tell({"export": str(out), "parameters": total}, [f"{total:,} parameters -> {out}"], json_)


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else json.dumps(value)


def _tell(tree: Any, lines: list[str], json_: bool) -> int:
    print(json.dumps(tree, ensure_ascii=False) if json_ else "\n".join(lines))
    return OK
