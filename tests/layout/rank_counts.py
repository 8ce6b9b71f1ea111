"""One rank of real FSDP2 x expert-parallel steps that counts what it holds and what it hands to each collective.

    python rank_counts.py RANK WORLD RENDEZVOUS_FILE MESHES_JSON SHAPE_JSON SEQUENCE ROWS

Prints one JSON line per mesh: elements held, bytes of the shard, and payload bytes per kind of collective as
layout/traffic.py counts them.
"""

from __future__ import annotations

import collections
import json
import sys
from typing import Any

import torch
import torch.distributed as dist

# function of torch.distributed (its name before and since torch 2.13) -> kind, and which argument holds the payload
COUNTED = {
    "all_gather_into_tensor": ("gather", 0),
    "all_gather_single": ("gather", 0),
    "reduce_scatter_tensor": ("scatter", 1),
    "reduce_scatter_single": ("scatter", 1),
    "all_reduce": ("reduce", 0),
    "all_to_all_single": ("exchange", 1),
}


def main() -> None:
    rank, world, store, meshes, shape, sequence, rows = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", rank=int(rank), world_size=int(world))
    payload: dict[str, int] = collections.Counter()

    def counting(name: str, kind: str, place: int) -> None:
        original = getattr(dist, name)

        def wrapper(*args: Any, **keywords: Any) -> Any:
            tensor = args[place] if len(args) > place else next(keywords[key] for key in _NAMES[place] if key in keywords)
            payload[kind] += tensor.numel() * tensor.element_size()
            return original(*args, **keywords)

        setattr(dist, name, wrapper)

    for name, (kind, place) in COUNTED.items():
        if hasattr(dist, name):
            counting(name, kind, place)
    # Imported now, because the trainer takes hold of the collectives' names when it is imported.
    from ninthsky.model import Decoder, Shape
    from ninthsky.train.cut.mesh import Mesh
    from ninthsky.train.step.loss import next_token_loss
    from ninthsky.train.step.recipe import Recipe
    from ninthsky.train.step.trainer import Trainer

    for mesh in json.loads(meshes):
        trainer = Trainer(Decoder(Shape(**json.loads(shape)), seed=0), next_token_loss, Recipe(), 1, Mesh.of(mesh))
        chance = torch.Generator().manual_seed(int(rank))
        tokens = torch.randint(0, json.loads(shape)["vocab"], (int(rows), int(sequence) + 1), generator=chance)
        payload.clear()
        trainer.local_gradients(tokens)
        held = sum(piece.local.numel() for piece in trainer.pieces)
        shard = sum(tensor.numel() * tensor.element_size() for tensor in trainer.state_shard().values())
        print(json.dumps({"held": held, "shard_bytes": shard, **payload}), flush=True)
    dist.destroy_process_group()


_NAMES = (("output_tensor", "output", "tensor"), ("input_tensor", "input"))

if __name__ == "__main__":
    main()
