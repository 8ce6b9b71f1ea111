"""Hugging Face Trainer on a tiny language model, with its own checkpoints. Knows nothing of Ninthsky."""

# mypy: ignore-errors
import argparse
import os
import time

import torch
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint


class Words(Dataset):
    def __len__(self) -> int:
        return 960

    def __getitem__(self, index: int) -> dict:
        words = torch.randint(0, 128, (24,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": words, "labels": words}


class Pause(TrainerCallback):
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_step_end(self, *arguments, **options) -> None:
        time.sleep(self.seconds)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--save-every", type=int, default=10)
    parser.add_argument("--pause", type=float, default=0.02)
    arguments = parser.parse_args()

    torch.manual_seed(7)
    shape = LlamaConfig(
        vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2
    )
    model = LlamaForCausalLM(shape)
    training = TrainingArguments(
        output_dir=arguments.out,
        max_steps=arguments.steps,
        per_device_train_batch_size=4,
        save_steps=arguments.save_every,
        save_total_limit=2,
        logging_steps=arguments.save_every,
        learning_rate=1e-3,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        seed=7,
    )
    trainer = Trainer(model=model, args=training, train_dataset=Words(), callbacks=[Pause(arguments.pause)])
    newest = get_last_checkpoint(arguments.out)
    if newest:
        print(f"resumes from {os.path.basename(newest)}", flush=True)
    trainer.train(resume_from_checkpoint=newest)
    if trainer.is_world_process_zero():
        torch.save(trainer.accelerator.unwrap_model(trainer.model).state_dict(), os.path.join(arguments.out, "final.pt"))


if __name__ == "__main__":
    main()
