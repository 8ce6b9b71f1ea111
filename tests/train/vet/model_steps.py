"""What a model and its trainer do with a device, at the smallest shapes: every way that the house trains and answers."""

from __future__ import annotations

from typing import Any

import torch

from ninthsky.model import Decoder, Shape
from ninthsky.model.decoder import Layer
from ninthsky.model.generate import generate
from ninthsky.train.step.recipe import Recipe
from ninthsky.train.step.trainer import Gate, Trainer

SHAPE = Shape(97, 3, 32, 4, 2, 4, 2, 24, dense_layers=1, dense_dim=48)
UNEQUAL = Shape(
    97, 2, 32, 4, 4, 4, 2, 24, dense_layers=1, dense_dim=48, expert_dims=(24, 24, 8, 8), attention_bias=True, rotary=0.5
)


def loss(model: Any, tokens: torch.Tensor) -> tuple[torch.Tensor, int]:
    return model.token_loss(model(tokens[:, :-1]), tokens[:, 1:]), tokens[:, 1:].numel()


def every_kind_of_step(device: torch.device) -> None:
    tokens = torch.randint(0, 97, (2, 17), generator=torch.Generator().manual_seed(0)).to(device)
    documents = torch.tensor([0] * 5 + [1] * 11).expand(2, 16).to(device)
    for shape in (SHAPE, UNEQUAL):
        for precision in ("fp32", "bf16"):
            for optimizer in ("adamw", "sgd", "muon"):
                model = Decoder(shape)
                model.z_loss = 1e-4
                recipe: Any = {"precision": precision, "optimizer": optimizer}
                trainer = Trainer(model, loss, Recipe(**recipe), 10, device=device)
                for layer in model.layers:
                    assert isinstance(layer, Layer)
                    layer.recompute = optimizer == "sgd"
                for _ in range(2):
                    trainer.local_gradients(tokens)
                    trainer.apply(Gate.total([trainer.gate_values()]))
                ignoring = tokens[:, 1:].masked_fill(tokens[:, 1:] % 3 == 0, -100)
                model.token_loss(model(tokens[:, :-1], documents=documents), ignoring).backward()
                model(embeddings=torch.ones(2, 8, 32, device=device), prefix=3).sum().backward()
                trainer.gate_values()
                trainer.drop_gradients()
    generate(model.eval(), [[1, 2, 3], [4, 5]], 3)
    generate(model, [[1, 2, 3]], 2, temperature=1.0)
