"""A plain DistributedDataParallel script, as people write them, with its own checkpoint. Knows nothing of Ninthsky."""

# mypy: ignore-errors
import argparse
import os
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--save-every", type=int, default=10)
    parser.add_argument("--pause", type=float, default=0.02)
    arguments = parser.parse_args()

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(7)
    data = TensorDataset(torch.randn(960, 32), torch.randn(960, 8))
    model = DistributedDataParallel(nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 8)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    sampler = DistributedSampler(data, shuffle=True, seed=1)
    loader = DataLoader(data, batch_size=8, sampler=sampler)

    step = 0
    newest = os.path.join(arguments.out, "newest")
    if os.path.exists(newest):
        with open(newest) as file:
            state = torch.load(os.path.join(arguments.out, f"step-{file.read()}.pt"), weights_only=True)
        model.module.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
        print(f"rank {rank} resumes at step {step}", flush=True)

    while step < arguments.steps:
        epoch, done = divmod(step, len(loader))
        sampler.set_epoch(epoch)
        for number, (x, y) in enumerate(loader):
            if number < done:
                continue
            loss = nn.functional.mse_loss(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            time.sleep(arguments.pause)
            step += 1
            if rank == 0 and step % arguments.save_every == 0:
                state = {"model": model.module.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                torch.save(state, os.path.join(arguments.out, f"step-{step}.pt"))
                with open(newest + ".new", "w") as file:
                    file.write(str(step))
                os.replace(newest + ".new", newest)
                print(f"step {step} loss {loss.item():.4f}", flush=True)
            if step >= arguments.steps:
                break
    dist.barrier()
    if rank == 0:
        torch.save(model.module.state_dict(), os.path.join(arguments.out, "final.pt"))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
