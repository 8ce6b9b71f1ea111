"""The one dial: what each `size` stands for. A value given in run.toml wins over the dial."""

from __future__ import annotations

from typing import Any

from ninthsky.config.presets import PRESETS
from ninthsky.config.schema import Model, Settings, Size

# block -> setting -> value, per size. `nano` is for tests, `tiny` for the demo on two cores.
SIZES: dict[Size, dict[str, dict[str, Any]]] = {
    "nano": {
        "data": {"max_pages": 360, "vocab": 512},
        "model": dict(
            layers=2,
            dim=32,
            heads=2,
            kv_heads=1,
            experts=4,
            experts_per_token=2,
            expert_dim=32,
            shared_experts=1,
            dense_layers=1,
            dense_dim=64,
        ),
        "train": dict(budget=20.0, sequence=64, batch=8, lr=3e-3, optimizer="adamw"),
        "align": dict(budget=12.0, prompts=60),
        "signal": dict(budget=8.0),
        "radio": dict(stations=200, budget=6.0),
    },
    "tiny": {
        "data": {"max_pages": 1_500, "vocab": 1_024},
        "model": dict(
            layers=4,
            dim=96,
            heads=4,
            kv_heads=2,
            experts=8,
            experts_per_token=2,
            expert_dim=96,
            shared_experts=1,
            dense_layers=1,
            dense_dim=256,
        ),
        "train": dict(budget=60.0, sequence=128, batch=16, lr=1e-2, optimizer="muon"),
        "align": dict(budget=35.0, prompts=300),
        "signal": dict(budget=30.0),
        "radio": dict(stations=2_000, budget=20.0),
    },
    "small": {
        "data": {"max_pages": 20_000, "vocab": 8_192},
        "model": dict(
            layers=8,
            dim=384,
            heads=6,
            kv_heads=2,
            experts=8,
            experts_per_token=2,
            expert_dim=384,
            shared_experts=1,
            dense_layers=1,
            dense_dim=1_024,
        ),
        "train": dict(budget=1_200.0, sequence=512, batch=32, lr=3e-3, optimizer="adamw"),
        "align": dict(budget=300.0, prompts=500),
        "signal": dict(budget=300.0),
        "radio": dict(stations=20_000, budget=120.0),
    },
    "node": {
        "data": {"max_pages": 10_000_000, "vocab": 65_536},
        "model": dict(
            layers=24,
            dim=2_048,
            heads=16,
            kv_heads=4,
            experts=64,
            experts_per_token=6,
            expert_dim=1_024,
            shared_experts=1,
            dense_layers=1,
            dense_dim=8_192,
        ),
        "train": dict(budget=86_400.0, sequence=4_096, batch=512, lr=6e-4, optimizer="adamw"),
        "align": dict(budget=7_200.0, prompts=500),
        "signal": dict(budget=7_200.0),
        "radio": dict(stations=200_000, budget=1_200.0),
    },
    "cluster": {
        "data": {"max_pages": 10_000_000_000, "vocab": 152_064},
        "model": dict(
            layers=48,
            dim=5_120,
            heads=40,
            kv_heads=8,
            experts=128,
            experts_per_token=8,
            expert_dim=1_536,
            shared_experts=1,
            dense_layers=1,
            dense_dim=12_288,
        ),
        "train": dict(budget=5_184_000.0, sequence=8_192, batch=16_384, lr=2e-4, optimizer="adamw"),
        "align": dict(budget=86_400.0, prompts=1_000),
        "signal": dict(budget=86_400.0),
        "radio": dict(stations=6_860_000, budget=7_200.0),
    },
}


def derive(settings: Settings) -> Settings:
    """The settings with every value that was left out filled in from the dial."""
    filled: dict[str, Any] = {}
    settings = settings.model_copy(update={"model": _preset(settings.model)})
    for block, values in SIZES[settings.size].items():
        given = getattr(settings, block)
        missing = {key: value for key, value in values.items() if getattr(given, key) is None}
        # A number of steps given by a person replaces the time budget, never the other way round.
        if "budget" in missing and any(getattr(given, key, None) for key in ("steps", "sft_steps", "dpo_steps")):
            del missing["budget"]
        filled[block] = given.model_copy(update=missing)
    return settings.model_copy(update=filled)


def _preset(model: Model) -> Model:
    """With the sizes of its preset, and with number and width of experts where each has a width of its own."""
    values = dict(PRESETS[model.preset].model) if model.preset is not None else {}
    if model.expert_dims:
        values |= {"experts": len(model.expert_dims), "expert_dim": max(model.expert_dims)}
    return model.model_copy(update={key: value for key, value in values.items() if key not in model.model_fields_set})
