"""What the ranks of a pretraining job have to know, as one JSON file: `python -m ninthsky.train.rank.elastic JOB.json`."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import msgspec

from ninthsky.model.shape import Shape
from ninthsky.run.folder import write_json
from ninthsky.train.control.limits import Limits
from ninthsky.train.control.program import Program
from ninthsky.train.cut.fewer import micro_batches_at
from ninthsky.train.cut.mesh import Mesh
from ninthsky.train.inject import Fault
from ninthsky.train.step.recipe import Recipe


class TrainJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job of fixed length. Everything that a step depends on stands here or in the step's number.

    `folder` takes history.jsonl, checkpoint/ and, where `export`, export/. `batch` is in sequences over all ranks.
    """

    shape: Shape
    recipe: Recipe
    mesh: Mesh
    fewer: list[Mesh] = []  # that the job can go on with when cards are lost, largest first
    tokens: str  # folder of data.tokens with tokenizer.json and index.json
    folder: str
    steps: int
    sequence: int
    batch: int
    seed: int
    checkpoint_every: int
    replicate_every: int = 1
    replay_every: int = 0  # [guard]: steps between two replays; 0: none
    digest_parts: int = 1
    mixture: dict[str, float] = {}  # language or source -> weight; empty: all tokens as they come
    document_mask: bool = False
    precisions: list[str] = []  # those whose speed is to be measured
    export: bool = True
    faults: list[Fault] = []
    control: Limits = Limits(mode="off")
    program: Program | None = None  # a finished run's, which a twin follows
    validate_every: int = 0
    validation: float = 0.02  # share of the training tokens, kept apart where validate_every is set
    events: str = ""  # the run's events.jsonl; needed where there are faults

    def at(self, ranks: int) -> TrainJob:
        """The same job on so many ranks. Batches stay the same; each rank reads more of them, in more micro-batches.

        Raises KeyError for a number that it has no mesh for.
        """
        mesh = {mesh.ranks: mesh for mesh in (self.mesh, *self.fewer)}[ranks]
        micro_batches = micro_batches_at(mesh, self.mesh, self.recipe.micro_batches)
        return msgspec.structs.replace(self, mesh=mesh, recipe=replace(self.recipe, micro_batches=micro_batches))

    def save(self, path: Path) -> Path:
        """Writes the file, and returns its path."""
        write_json(
            path,
            {
                **msgspec.to_builtins(self),
                "shape": asdict(self.shape),
                "recipe": asdict(self.recipe),
                "mesh": asdict(self.mesh),
                "fewer": [asdict(mesh) for mesh in self.fewer],
            },
        )
        return path


def load_job(path: Path) -> TrainJob:
    """Raises msgspec.ValidationError where the file is none of ours."""
    return msgspec.json.decode(path.read_bytes(), type=TrainJob)
