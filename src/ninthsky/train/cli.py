"""`n9 train`: score an export on held-out tokens, look into checkpoints, export one, check a cut against one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from ninthsky.errors import FAILED, OK

app = App(name="train", help="Tokens to a checkpoint, over many cards.")
app.command("ninthsky.train.control.cli:set_", name="set", help="Change lr, clip ... of a live run from its next step on.")
app.command("ninthsky.train.control.cli:pause", help="Hold a live run between two steps.")
app.command("ninthsky.train.vet.cli:vet", name="vet", help="What a young chip is asked before it is trusted with a run.")
app.command("ninthsky.train.control.cli:resume", help="Let a paused run go on.")
Json = Annotated[bool, Parameter(name="--json", negative=())]


@app.command(name="eval")
def evaluate(
    export: Path,
    *,
    tokens: Path,
    sequence: int = 128,
    stride: int | None = None,
    limit: int | None = None,
    document_mask: bool = False,
    json_: Json = False,
) -> int:
    """Bits per byte of held-out text, by language and source, beside what counting finds in the same training tokens.

    Parameters
    ----------
    export
        Folder in Hugging Face Glm4Moe layout: `export` of a run's stage.
    tokens
        Folder with `index.json`, as stage data.tokens writes it.
    sequence
        Tokens of context per window.
    stride
        Tokens from one window's begin to the next; as long as a window by default, so that none overlap.
    limit
        Held-out tokens to score at most; all by default.
    document_mask
        Documents of one window do not see each other, as for a model that was trained so.
    """
    import torch

    from ninthsky.model.files import load
    from ninthsky.train.text.evaluate import evaluate as scored

    torch.set_num_threads(1)
    found = scored(load(export), tokens, sequence, stride, limit, document_mask=document_mask)
    return _tell(found.record(), found.lines(), json_)


@app.command
def score(file: Path, *, export: Path, longest: int | None = None, json_: Json = False) -> int:
    """Multiple choice as the lm-evaluation-harness scores it: shares that are right, with 95 % intervals.

    Parameters
    ----------
    file
        One JSON object a line: context, choices, answer (from 0); optional: delimiter, group.
    export
        Folder in Hugging Face Glm4Moe layout with tokenizer.json.
    longest
        Tokens that the model looks at, at most; the last ones of a longer text.
    """
    import torch

    from ninthsky.model.files import load
    from ninthsky.train.text import choice

    torch.set_num_threads(1)
    questions = choice.read_questions(file)
    marks = choice.marks(choice.answer(load(export), choice.open_tokenizer(export), questions, longest))
    lines = [f"{'':16s}{'measure':22s}{'right':>8s}{'95 % interval':>18s}{'questions':>12s}"]
    for mark in marks:
        low, high = mark.interval
        share = mark.right / mark.total
        lines.append(f"{mark.group:16s}{mark.measure:22s}{share:8.4f}{low:10.4f} - {high:.4f}{mark.total:11,d}")
    return _tell({"marks": [mark.record() for mark in marks]}, lines, json_)


@app.command
def check(folder: Path, *, json_: Json = False) -> int:
    """Reads every byte of the checkpoints of a folder and says which are good; status 1 where none is."""
    from ninthsky.train.state.checkpoint import check as problem_of
    from ninthsky.train.state.checkpoint import checkpoints

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
    from ninthsky.train.state.checkpoint import load_weights

    model = load(like)
    step = load_weights(model, checkpoint)
    tokenizer = like / "tokenizer.json"
    save(model, out, tokenizer if tokenizer.exists() else None)
    return _tell({"step": step, "export": str(out)}, [f"step {step} -> {out}"], json_)


def _tell(tree: dict[str, Any], lines: list[str], json_: bool) -> int:
    print(json.dumps(tree, ensure_ascii=False) if json_ else "\n".join(lines))
    return OK
