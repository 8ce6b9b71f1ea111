"""A stage: one pure function from upstream outputs and settings to files, and what it is handed while it works."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from ninthsky.config.schema import Settings
from ninthsky.evidence import Evidence, encode
from ninthsky.run.folder import HashedFile, RunFolder, read_json, write_json
from ninthsky.run.progress import Progress, Screen


@dataclass(frozen=True)
class Stage:
    """A step of a run.

    `version` is raised by hand when the stage's result changes; white space in code is not a reason to run again.
    `uses` lists the dotted settings (blocks or keys) that the result depends on: a change of any of them is a reason.
    `files` lists settings that name files or folders: other sizes or times of theirs are a reason too.
    `run` and `explain` are import paths `module:function`, so that planning a run imports no room's heavy parts.
    """

    name: str
    title: str
    version: int
    run: str  # function (StageContext) -> None
    needs: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    explain: str = ""  # function (stage folder: Path, id: str) -> Evidence | None, beside evidence.jsonl


@dataclass
class StageContext:
    """What a stage may read and where it writes. It writes nowhere else."""

    stage: Stage
    settings: Settings
    folder: RunFolder
    screen: Screen
    out: Path
    inputs: dict[str, Path]  # stage name -> its folder, for every stage in `needs`
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    _summary: dict[str, Any] = field(default_factory=dict)
    _figures: list[dict[str, Any]] = field(default_factory=list)
    _evidence: list[Evidence] = field(default_factory=list)

    # -- progress and events ------------------------------------------------------------------------------------------

    def progress(self, title: str, total: float | None = None, unit: str = "") -> contextlib.AbstractContextManager[Progress]:
        """`with ctx.progress("pages", total=300, unit="pages") as bar: bar.advance()`"""
        return _Finished(self.screen.task(title, total, unit))

    def say(self, text: str, style: str = "") -> None:
        """One line to the person watching."""
        self.screen.line(f"  {text}", style)

    def event(self, kind: str, **fields: Any) -> None:
        """One line to the run's events.jsonl, which `n9 watch` follows."""
        self.folder.event(kind, stage=self.stage.name, **fields)

    # -- outputs --------------------------------------------------------------------------------------------------------

    def open(self, name: str, rows: int | None = None, volatile: bool = False) -> HashedFile:
        """A binary output file, digested while it is written, and visible only when complete."""
        context = self

        class Output(HashedFile):
            def close(self) -> None:
                super().close()
                context.outputs[name] = {"size": self.size, "rows": rows, "xxh3": self.xxh3, "volatile": volatile}

        return Output(self.out / name)

    def rows(self, name: str, count: int) -> None:
        """Notes the number of rows of an output that was already written."""
        self.outputs[name]["rows"] = count

    def adopt(self, name: str, rows: int | None = None, volatile: bool = False) -> None:
        """Takes in a file under `out` that a library insisted on writing itself. Read once to be digested.

        `volatile` files hold times and speeds: they are checked for presence but are no part of the stage's digest.
        """
        hasher, size = xxhash.xxh3_128(), 0
        with (self.out / name).open("rb") as file:
            while block := file.read(1 << 20):
                hasher.update(block)
                size += len(block)
        self.outputs[name] = {"size": size, "rows": rows, "xxh3": hasher.hexdigest(), "volatile": volatile}

    def fixed(self, name: str, make: Callable[[], Any]) -> Any:
        """A value decided once (a number of steps, say) and read back ever after, also after a crash."""
        path = self.out / f"{name}.json"
        value = read_json(path)
        if value is None:
            value = make()
            write_json(path, value)
        if name not in self.outputs:
            self.adopt(f"{name}.json")
        return value

    # -- what the report is made from -----------------------------------------------------------------------------------

    def summary(self, **numbers: Any) -> None:
        """Figures of this stage under plain names; the report and the headline box read them."""
        self._summary.update(numbers)

    def headline(self, label: str, value: str, rival: str, rival_value: str, command: str, synthetic: bool = False) -> None:
        """This stage's line in the box at the end of a run: our figure beside its rival's and the command that shows it."""
        self._summary.setdefault("headlines", []).append(
            {
                "label": label,
                "value": value,
                "rival": rival,
                "rival_value": rival_value,
                "command": command,
                "synthetic": synthetic,
            }
        )

    def limit(self, text: str) -> None:
        """Something that this stage's figures do not show."""
        self._summary.setdefault("limits", []).append(text)

    def plot(
        self, id: str, title: str, traces: list[dict[str, Any]], layout: dict[str, Any] | None = None, note: str = ""
    ) -> None:
        """A plotly figure as plain dictionaries (cartesian traces only: the report inlines that bundle)."""
        self._figures.append({"kind": "plot", "id": id, "title": title, "traces": traces, "layout": layout or {}, "note": note})

    def table(self, id: str, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], note: str = "") -> None:
        """A table of the report."""
        self._figures.append(
            {
                "kind": "table",
                "id": id,
                "title": title,
                "columns": list(columns),
                "rows": [list(row) for row in rows],
                "note": note,
            }
        )

    def evidence(self, record: Evidence) -> None:
        """A record that `n9 why ID` answers with."""
        self._evidence.append(record)

    def write_records(self) -> None:
        """Called by the engine after `run`: summary, figures and evidence become outputs like any other."""
        write_json(self.out / "summary.json", self._summary)
        write_json(self.out / "figures.json", self._figures)
        self.adopt("summary.json", volatile=True)
        self.adopt("figures.json", volatile=True)
        if self._evidence:
            with self.open("evidence.jsonl", rows=len(self._evidence), volatile=True) as file:
                for record in self._evidence:
                    file.write(encode(record) + b"\n")


class _Finished(contextlib.AbstractContextManager[Progress]):
    def __init__(self, task: Progress) -> None:
        self.task = task

    def __enter__(self) -> Progress:
        return self.task

    def __exit__(self, *_: object) -> None:
        self.task.finish()
