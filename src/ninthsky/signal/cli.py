"""`n9 signal`: what the model can be shown, and what it says to one signal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from ninthsky.errors import OK, UserError

if TYPE_CHECKING:
    from ninthsky.signal.tasks import Prepared

app = App(name="signal", help="The same model reads signals.")

Json = Annotated[bool, Parameter(name="--json", negative="", help="JSON instead of text.")]


@app.command(name="list")
def list_tasks(*, seed: int = 7, json_: Json = False) -> int:
    """Print the tasks: what each shows, asks, and how its rows are split.

    Parameters
    ----------
    seed: Of synthetic signals and of the split.
    """
    from ninthsky.signal.tasks import TASKS, prepare

    prepared = [prepare(task, seed) for task in TASKS.values()]
    if json_:
        print(json.dumps([_described(data) for data in prepared], ensure_ascii=False))
        return OK
    for data in prepared:
        task, axes = data.task, ", ".join(f"{axis.name} ({axis.unit})" for axis in data.rows.axes)
        print(f"{task.name}  ({task.origin})  {task.question}")
        print(f"  classes  {', '.join(data.rows.classes)}")
        kind, (_, patches, values) = data.rows.signals[0].value.kind, data.patches.shape
        print(f"  axes     {axes}, {kind}; {patches} patches of {values} values")
        print(f"  rows     {len(data.rows)}, tested {len(data.test)}, split by {task.split_by}")
    return OK


def _described(data: Prepared) -> dict[str, Any]:
    return {
        "task": data.task.name,
        "origin": data.task.origin,
        "question": data.task.question,
        "classes": list(data.rows.classes),
        "axes": [axis.name for axis in data.rows.axes],
        "value": data.rows.signals[0].value.kind,
        "patches": data.patches.shape[1],
        "values_per_patch": data.patches.shape[2],
        "rows": len(data.rows),
        "tested": len(data.test),
        "split_by": data.task.split_by,
    }


@app.command
def answer(
    task: str,
    /,
    *,
    row: int = 0,
    reader: Path | None = None,
    run: str | None = None,
    store: Path = Path("runs"),
    seed: int | None = None,
    json_: Json = False,
) -> int:
    """Show the trained reader one test signal and print what it says, beside the truth.

    Parameters
    ----------
    task: Its name, as `n9 signal list` prints it.
    row: Place among the test rows.
    reader: Folder `reader` of the stage signal.learn; left out, that of a run.
    run: Name of the run; left out, the newest.
    store: Folder of runs.
    seed: That of the run, so that the row was not trained on; left out, the run's, or 7 beside --reader.
    """
    import torch
    from tokenizers import Tokenizer

    from ninthsky.run.folder import find_run, read_json
    from ninthsky.signal.reader import load_reader, question_ids
    from ninthsky.signal.tasks import prepare, task_named

    wanted = task_named(task)
    if reader is None:
        found = find_run(store, run)
        reader = found.stage("signal.learn") / "reader"
        seed = seed if seed is not None else (read_json(found.path / "settings.json") or {}).get("seed")
    data = prepare(wanted, 7 if seed is None else seed)
    if not 0 <= row < len(data.test):
        raise UserError("N9-SIG-005", f"there is no test row {row}", task, f"rows go from 0 to {len(data.test) - 1}")
    model, tokenizer = load_reader(reader), Tokenizer.from_file(str(reader / "tokenizer.json"))
    if task not in model.forms:
        raise UserError("N9-SIG-004", f"this reader has not learnt {task!r}", str(reader), f"it knows {', '.join(model.forms)}")
    place = int(data.test[row])
    said = model.answer(
        task, torch.from_numpy(data.patches[[place]]), question_ids(tokenizer, data.task.question), max_new_tokens=12
    )[0]
    text, truth = tokenizer.decode(said, skip_special_tokens=False).strip(), data.answers[place]
    context = data.rows.signals[place].context
    if json_:
        shown = {
            "task": task,
            "row": row,
            "recording": context.recording,
            "origin": context.origin,
            "truth": truth,
            "said": text,
        }
        print(json.dumps({**shown, "right": text == truth}, ensure_ascii=False))
    else:
        print(f"{context.recording} ({context.origin})  {data.task.question}")
        print(f"  said   {text}\n  truth  {truth}")
    return OK
