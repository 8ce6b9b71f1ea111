"""Hugging Face Accelerate, with its own save_state and load_state. Knows nothing of Ninthsky."""

# mypy: ignore-errors
import argparse
import os
import time

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--save-every", type=int, default=10)
    parser.add_argument("--pause", type=float, default=0.02)
    arguments = parser.parse_args()

    accelerator = Accelerator(cpu=True)
    set_seed(7)
    data = TensorDataset(torch.randn(960, 32), torch.randn(960, 8))
    model = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, arguments.steps)
    loader = DataLoader(data, batch_size=8, shuffle=False)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)

    step = 0
    newest = os.path.join(arguments.out, "newest")
    if os.path.exists(newest):
        with open(newest) as file:
            step = int(file.read())
        accelerator.load_state(os.path.join(arguments.out, f"step-{step}"))
        print(f"rank {accelerator.process_index} resumes at step {step}", flush=True)

    while step < arguments.steps:
        batches = accelerator.skip_first_batches(loader, step % len(loader))
        for x, y in batches:
            with accelerator.accumulate(model):
                loss = nn.functional.mse_loss(model(x), y)
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            time.sleep(arguments.pause)
            step += 1
            if step % arguments.save_every == 0:
                accelerator.save_state(os.path.join(arguments.out, f"step-{step}"))
                mean = accelerator.gather(loss.detach()).mean().item()
                if accelerator.is_main_process:
                    with open(newest + ".new", "w") as file:
                        file.write(str(step))
                    os.replace(newest + ".new", newest)
                    print(f"step {step} loss {mean:.4f}", flush=True)
            if step >= arguments.steps:
                break
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        torch.save(accelerator.unwrap_model(model).state_dict(), os.path.join(arguments.out, "final.pt"))
    accelerator.end_training()


if __name__ == "__main__":
    main()
