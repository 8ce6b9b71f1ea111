"""FSDP2 (fully_shard) with a distributed checkpoint of its own. Knows nothing of Ninthsky."""

# mypy: ignore-errors
import argparse
import os
import shutil
import time

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--save-every", type=int, default=10)
    parser.add_argument("--pause", type=float, default=0.02)
    arguments = parser.parse_args()

    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(7)
    mesh = init_device_mesh("cpu", (world,))
    model = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 8))
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    step = 0
    saved = os.path.join(arguments.out, "newest")
    if os.path.exists(saved):
        with open(saved) as file:
            step = int(file.read())
        weights, moments = get_state_dict(model, optimizer)
        state = {"model": weights, "optimizer": moments}
        dcp.load(state, checkpoint_id=os.path.join(arguments.out, f"step-{step}"))
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        print(f"rank {rank} resumes at step {step}", flush=True)

    while step < arguments.steps:
        noise = torch.Generator().manual_seed(1000 * step + rank)
        x, y = torch.randn(8, 32, generator=noise), torch.randn(8, 8, generator=noise)
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        time.sleep(arguments.pause)
        step += 1
        if step % arguments.save_every == 0:
            weights, moments = get_state_dict(model, optimizer)
            folder = os.path.join(arguments.out, f"step-{step}")
            dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=folder)
            if rank == 0:
                with open(saved + ".new", "w") as file:
                    file.write(str(step))
                os.replace(saved + ".new", saved)
                shutil.rmtree(os.path.join(arguments.out, f"step-{step - 2 * arguments.save_every}"), ignore_errors=True)
                print(f"step {step} loss {loss.item():.4f}", flush=True)
    full = {name: parameter.full_tensor() for name, parameter in model.state_dict().items()}
    if rank == 0:
        torch.save(full, os.path.join(arguments.out, "final.pt"))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
