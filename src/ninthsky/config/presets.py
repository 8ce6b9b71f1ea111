"""Shapes that others published, by name, with the parameter counts that their sources state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """A published shape. It gives sizes; how a router scores is our own (sigmoid, balanced by its bias) for all of them."""

    name: str
    source: str  # where sizes and counts were read
    vocab: int  # the published one; a run has the vocabulary of its own tokenizer
    model: dict[str, Any]  # values of a [model] block
    total: str  # parameters as published, in the publisher's own rounding
    active: str
    tables: bool = True  # whether these counts include embedding and output layer
    further_layers: int = 0  # layers for predicting further tokens that the published total includes; none exist here
    width_met: int | None = None  # of routed experts together by one token, where the published routing is not ours
    notes: str = ""

    def stated(self) -> tuple[float, float, float, float]:
        """(total, one unit of its last digit, active, one unit of its last digit), in parameters."""
        return (*_read(self.total), *_read(self.active))


def _read(text: str) -> tuple[float, float]:
    number, scale = text.removesuffix("B"), 1e9
    return float(number) * scale, scale / 10 ** len(number.partition(".")[2])


_GLM = dict(head_dim=128, attention_bias=True, rotary=0.5, rope_theta=1e6, norm_eps=1e-5, shared_experts=1)
_QWEN3 = dict(head_dim=128, qk_norm=True, rope_theta=1e6, norm_eps=1e-6, shared_experts=0, dense_layers=0, dense_dim=0)

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "glm-4.5",
            "docs.nvidia.com Megatron Bridge, GLM 4.5, and github.com/zyzshishui/slime scripts/models/glm4.5-355B-A32B.sh; "
            "counts: github.com/zai-org/GLM-4.5 README",
            151_552,
            _GLM
            | dict(layers=92, dim=5_120, heads=96, kv_heads=8, experts=160, experts_per_token=8, expert_dim=1_536)
            | dict(dense_layers=3, dense_dim=12_288, qk_norm=True, routed_scaling=2.5),
            total="355B",
            active="32B",
            tables=False,
            further_layers=1,
            notes="The published total comes out with its layer for one further token and without embedding and output layer.",
        ),
        Preset(
            "glm-4.5-air",
            "transformers Glm4MoeConfig's defaults, and config.json of PrimeIntellect/INTELLECT-3-Base (its finetune) on "
            "Hugging Face; counts: github.com/zai-org/GLM-4.5 README",
            151_552,
            _GLM
            | dict(layers=46, dim=4_096, heads=96, kv_heads=8, experts=128, experts_per_token=8, expert_dim=1_408)
            | dict(dense_layers=1, dense_dim=10_944, qk_norm=False, routed_scaling=1.0),
            total="106B",
            active="12B",
            tables=False,
            notes="The published counts come out without embedding, output layer and its layer for one further token.",
        ),
        Preset(
            "qwen3-30b-a3b",
            "gitcode.com/Ascend/MindSpeed-RL configs/model/qwen3_30b_a3b.yaml, github.com/zyzshishui/slime scripts/models/"
            "qwen3-30B-A3B.sh; counts: docs.vllm.ai, vllm-ascend tutorial Qwen3-30B-A3B",
            151_936,
            _QWEN3 | dict(layers=48, dim=2_048, heads=32, kv_heads=4, experts=128, experts_per_token=8, expert_dim=768),
            total="30.5B",
            active="3.3B",
        ),
        Preset(
            "qwen3-235b-a22b",
            "gitcode.com/Ascend/MindSpeed-RL configs/model/qwen3_235b_a22b.yaml; counts: docs.nvidia.com Megatron Bridge, "
            "Qwen3-MoE",
            151_936,
            _QWEN3 | dict(layers=94, dim=4_096, heads=64, kv_heads=4, experts=128, experts_per_token=8, expert_dim=1_536),
            total="235B",
            active="22B",
        ),
        Preset(
            "mixtral-8x7b",
            "config.json of mistralai/Mixtral-8x7B-Instruct-v0.1 on Hugging Face; counts: arXiv 2401.04088, abstract",
            32_000,
            dict(layers=32, dim=4_096, heads=32, kv_heads=8, experts=8, experts_per_token=2, expert_dim=14_336)
            | dict(shared_experts=0, dense_layers=0, dense_dim=0, qk_norm=False, rope_theta=1e6, norm_eps=1e-5),
            total="47B",
            active="13B",
        ),
        Preset(
            "jiutian-139moe",
            "README.md table 1, models/139/config.json and modeling_jiutian.py of JIUTIAN-139MoE (read in github.com/rjlxzza/"
            "green_area at 896f538)",
            69_120,
            dict(layers=40, dim=5_120, heads=40, kv_heads=40, experts=7, experts_per_token=2, expert_dim=13_824)
            | dict(expert_dims=(13_824,) + (6_912,) * 6, shared_experts=0, dense_layers=0, dense_dim=0)
            | dict(qk_norm=False, rope_theta=1e4, norm_eps=1e-8),
            total="38.8B",
            active="13B",
            width_met=13_824,
            notes="Its two large twins are one set of weights for two of the router's eight choices: a token meets that one "
            "expert or two small ones. Here a token meets any two of the seven, 15.8 thousand wide in the mean.",
        ),
    )
}
