"""`n9 train`: score an export on held-out tokens, look into checkpoints, export one, check a cut against one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from ninthsky.errors import FAILED, OK, UserError

app = App(name="train", help="Tokens to a checkpoint, over many cards.")
Json = Annotated[bool, Parameter(name="--json", negative=())]


@app.command(name="eval")
def evaluate(export: Path, *, tokens: Path, sequence: int = 128, limit: int | None = None, json_: Json = False) -> int:
    """Held-out loss of an export folder, beside counts of single tokens and of pairs fitted on the training tokens.

    Parameters
    ----------
    export
        Folder in Hugging Face Glm4Moe layout: `export` of a run's stage.
    tokens
        Folder with `index.json`, as stage data.tokens writes it.
    sequence
        Tokens of context per window; windows do not overlap.
    limit
        Held-out tokens to score at most; all by default.
    """
    import torch

    from ninthsky.model.files import load
    from ninthsky.train.baseline import count_scores, model_score
    from ninthsky.train.cursor import TokenFile

    torch.set_num_threads(1)
    train, held_out = (TokenFile.open(tokens, split) for split in ("train", "held_out"))
    model = load(export)
    if model.shape.vocab != held_out.vocab:
        what = f"the model knows {model.shape.vocab} tokens, the folder was written with {held_out.vocab}"
        raise UserError("N9-TRN-001", what, str(tokens), "name the tokens that the model was trained on")
    scores = [model_score(model, held_out, sequence, limit=limit), *reversed(count_scores(train, held_out))]
    rows = [
        {"name": s.name, "nats_per_token": s.nats_per_token, "bits_per_byte": s.bits_per_byte, "tokens": s.tokens}
        for s in scores
    ]
    lines = [f"{'':10s}{'nats/token':>12s}{'bits/byte':>12s}{'tokens':>12s}"]
    for score in scores:
        bits = "unknown" if score.bits_per_byte is None else f"{score.bits_per_byte:.4f}"
        lines.append(f"{score.name:10s}{score.nats_per_token:12.4f}{bits:>12s}{score.tokens:12,d}")
    return _tell({"scores": rows}, lines, json_)


@app.command
def check(folder: Path, *, json_: Json = False) -> int:
    """Reads every byte of the checkpoints of a folder and says which are good; status 1 where none is."""
    from ninthsky.train.checkpoint import check as problem_of
    from ninthsky.train.checkpoint import checkpoints

    found = {path.name: problem_of(path) for path in checkpoints(folder)}
    lines = [f"{name:14s}{problem or 'good'}" for name, problem in found.items()] or [f"no checkpoint in {folder}"]
    good = [name for name, problem in found.items() if not problem]
    _tell({"checkpoints": found, "newest_good": good[0] if good else None}, lines, json_)
    return OK if good else FAILED


@app.command
def export(checkpoint: Path, out: Path, *, like: Path, json_: Json = False) -> int:
    """Writes the weights of a checkpoint folder `step-N` as a Hugging Face Glm4Moe folder, whatever mesh wrote it.

    Parameters
    ----------
    checkpoint
        Folder `checkpoint/step-N` of a run.
    out
        Folder to write.
    like
        An export folder of the same shape, from which sizes and tokenizer are taken.
    """
    from ninthsky.model.files import load, save
    from ninthsky.train.checkpoint import load_weights

    model = load(like)
    step = load_weights(model, checkpoint)
    tokenizer = like / "tokenizer.json"
    save(model, out, tokenizer if tokenizer.exists() else None)
    return _tell({"step": step, "export": str(out)}, [f"step {step} -> {out}"], json_)


def _tell(tree: dict[str, Any], lines: list[str], json_: bool) -> int:
    print(json.dumps(tree, ensure_ascii=False) if json_ else "\n".join(lines))
    return OK
