"""Export folder <-> Decoder: the Hugging Face layout of Glm4Moe, which `transformers`, vLLM and others read as it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save_file
from torch import Tensor

from ninthsky.errors import UserError
from ninthsky.model.decoder import Decoder, Layer
from ninthsky.model.experts import FeedForward
from ninthsky.model.shape import Shape

FILES = ("config.json", "model.safetensors")


def save(model: Decoder, folder: Path, tokenizer_json: Path | None = None) -> None:
    """Writes config.json, model.safetensors (fp32) and, given a tokenizer.json, the tokenizer with its settings.

    The same weights give the same bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().float().contiguous() for name, tensor in _to_glm(model)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _write(folder / "config.json", _config(model.shape))
    _write(folder / "generation_config.json", {"eos_token_id": 1, "pad_token_id": 0, "do_sample": False})
    if tokenizer_json is not None:
        shutil.copyfile(tokenizer_json, folder / "tokenizer.json")
        _write(
            folder / "tokenizer_config.json",
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": "<eos>",
                "pad_token": "<pad>",
                "clean_up_tokenization_spaces": False,
            },
        )


def load(folder: Path) -> Decoder:
    """The model of an export folder. Raises UserError N9-MOD-001 when the folder is none of ours, or is damaged."""
    for name in FILES:
        if not (folder / name).is_file():
            raise UserError("N9-MOD-001", f"no {name} in {folder}", str(folder), "name the folder `export` of a run")
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        # Read, not memory-mapped: a map of a file that someone replaces ends the process.
        stored = load_bytes((folder / "model.safetensors").read_bytes())
    except (ValueError, SafetensorError, OSError) as error:
        raise UserError("N9-MOD-001", f"the model is damaged: {error}", str(folder), "export it again") from error
    model = Decoder(_shape(config, folder), seed=None)
    with torch.no_grad():
        for name, tensor in _to_glm(model):
            given = stored.pop(name, None)
            if given is None or given.shape != tensor.shape:
                problem = "is missing" if given is None else f"has shape {list(given.shape)}, not {list(tensor.shape)}"
                raise UserError("N9-MOD-001", f"weight {name} {problem}", str(folder), "export it again")
            tensor.copy_(given)
    if stored:
        raise UserError("N9-MOD-001", f"weights that this shape has no place for: {', '.join(sorted(stored)[:3])}", str(folder))
    return model


def _to_glm(model: Decoder) -> Iterator[tuple[str, Tensor]]:
    """Each weight's name in the Glm4Moe layout, beside a view on ours: the one map for writing and for reading."""
    yield "model.embed_tokens.weight", model.embedding.weight
    yield "model.norm.weight", model.norm.weight
    yield "lm_head.weight", model.head.weight
    for number, layer in enumerate(model.layers):
        assert isinstance(layer, Layer)
        at = f"model.layers.{number}"
        yield f"{at}.input_layernorm.weight", layer.attention_norm.weight
        yield f"{at}.post_attention_layernorm.weight", layer.mlp_norm.weight
        for name, tensor in layer.attention.named_parameters():
            yield f"{at}.self_attn.{name}", tensor
        if isinstance(layer.mlp, FeedForward):
            yield from _feed_forward(f"{at}.mlp", layer.mlp.gate_up.weight, layer.mlp.down.weight)
            continue
        yield f"{at}.mlp.gate.weight", layer.mlp.router.weight
        yield f"{at}.mlp.gate.e_score_correction_bias", layer.mlp.router.e_score_correction_bias
        for expert in range(model.shape.experts):
            gate_up, down = layer.mlp.experts.gate_up[expert].T, layer.mlp.experts.down[expert].T
            yield from _feed_forward(f"{at}.mlp.experts.{expert}", gate_up, down)
        if layer.mlp.shared is not None:
            yield from _feed_forward(f"{at}.mlp.shared_experts", layer.mlp.shared.gate_up.weight, layer.mlp.shared.down.weight)


def _feed_forward(at: str, gate_up: Tensor, down: Tensor) -> Iterator[tuple[str, Tensor]]:
    gate, up = gate_up.chunk(2, 0)
    yield f"{at}.gate_proj.weight", gate
    yield f"{at}.up_proj.weight", up
    yield f"{at}.down_proj.weight", down


def _config(shape: Shape) -> dict[str, object]:
    return {
        "architectures": ["Glm4MoeForCausalLM"],
        "model_type": "glm4_moe",
        "vocab_size": shape.vocab,
        "hidden_size": shape.dim,
        "intermediate_size": shape.dense_dim or shape.expert_dim,
        "moe_intermediate_size": shape.expert_dim,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "n_routed_experts": shape.experts,
        "num_experts_per_tok": shape.experts_per_token,
        "n_shared_experts": shape.shared_experts,
        "first_k_dense_replace": shape.dense_layers,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "use_qk_norm": shape.qk_norm,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "partial_rotary_factor": 1.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta, "partial_rotary_factor": 1.0},
        "num_nextn_predict_layers": 0,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "dtype": "float32",
    }


# What a Glm4Moe folder may say otherwise and this decoder does not compute.
_ONLY = {
    "model_type": "glm4_moe",
    "n_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "attention_bias": False,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "num_nextn_predict_layers": 0,
}


def _shape(config: dict[str, object], folder: Path) -> Shape:
    rope = config.get("rope_parameters") or {}
    assert isinstance(rope, dict)
    given = {**config, "partial_rotary_factor": rope.get("partial_rotary_factor", config.get("partial_rotary_factor"))}
    for name, wanted in {**_ONLY, "partial_rotary_factor": 1.0}.items():
        if given.get(name) != wanted:
            raise UserError("N9-MOD-002", f"{name} = {given.get(name)!r}, and this decoder knows {wanted!r} only", str(folder))
    try:
        sizes = {
            ours: config[theirs]
            for ours, theirs in {
                "vocab": "vocab_size",
                "layers": "num_hidden_layers",
                "dim": "hidden_size",
                "heads": "num_attention_heads",
                "kv_heads": "num_key_value_heads",
                "experts": "n_routed_experts",
                "experts_per_token": "num_experts_per_tok",
                "expert_dim": "moe_intermediate_size",
                "shared_experts": "n_shared_experts",
                "dense_layers": "first_k_dense_replace",
                "dense_dim": "intermediate_size",
                "qk_norm": "use_qk_norm",
                "norm_eps": "rms_norm_eps",
            }.items()
        }
    except KeyError as error:
        raise UserError("N9-MOD-001", f"config.json lacks {error}", str(folder), "export it again") from None
    if not sizes["dense_layers"]:
        sizes["dense_dim"] = 0
    shape = Shape(**sizes, rope_theta=float(rope.get("rope_theta", config.get("rope_theta", 10_000.0))))  # type: ignore[arg-type]
    if shape.head_dim != config.get("head_dim", shape.head_dim):
        raise UserError("N9-MOD-002", f"head_dim = {config['head_dim']}, and this decoder knows dim / heads only", str(folder))
    return shape


def _write(path: Path, tree: object) -> None:
    path.write_text(json.dumps(tree, indent=2, sort_keys=True) + "\n", "utf-8")
