"""Export folder <-> Decoder: the Hugging Face layout of Glm4Moe, which `transformers`, vLLM and others read as it is."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save_file
from torch import Tensor

from ninthsky.errors import UserError
from ninthsky.model.decoder import Decoder, Layer
from ninthsky.model.experts import FeedForward
from ninthsky.model.shape import Shape

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5 << 30  # of one file of weights at most
EXPERT_DIMS = "n9_expert_dims"  # our own key of config.json: the widths of experts of different sizes, which files hold padded


# What `convert` carries along: token ids and length in config.json, and files that say how text becomes tokens.
CARRIED_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings")
CARRIED_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)


def save(
    model: Decoder,
    folder: Path,
    tokenizer_json: Path | None = None,
    dtype: torch.dtype = torch.float32,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes config.json, the weights and, given a tokenizer.json, the tokenizer with its settings.

    Weights of more than `shard_bytes` go into several files with an index. The same weights give the same bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("model*.safetensors"), folder / INDEX):
        old.unlink(missing_ok=True)
    _save_weights(model, folder, dtype, shard_bytes)
    _write(folder / "config.json", {**_config(model.shape), "dtype": str(dtype).removeprefix("torch.")})
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


def _save_weights(model: Decoder, folder: Path, dtype: torch.dtype, shard_bytes: int) -> None:
    shards: list[list[tuple[str, Tensor, tuple[int, ...], torch.dtype]]] = [[]]
    size = total = 0
    for name, tensor, stored in _to_glm(model):
        kind = torch.float32 if name.endswith("e_score_correction_bias") else dtype  # as transformers keeps it
        own = math.prod(stored) * kind.itemsize
        if shards[-1] and size + own > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append((name, tensor, stored, kind))
        size, total = size + own, total + own
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):  # made one after the other, so that one shard at a time is held twice
        file = WEIGHTS if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weights = {name: _padded(tensor.detach(), stored).to(kind).contiguous() for name, tensor, stored, kind in shard}
        save_file(weights, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(weights, file)
    if len(shards) > 1:
        _write(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def convert(folder: Path, out: Path, dtype: torch.dtype = torch.float32, shard_bytes: int = SHARD_BYTES) -> Decoder:
    """Reads a Glm4Moe folder and writes it as an export of ours, with token ids and tokenizer. Raises as `load` does."""
    if folder.resolve() == out.resolve():
        raise UserError("N9-MOD-001", "a folder cannot be written over itself", str(out), "name another folder")
    model, config = load(folder), _read_json(folder, "config.json")
    save(model, out, dtype=dtype, shard_bytes=shard_bytes)
    carried = {key: config[key] for key in CARRIED_KEYS if key in config}
    _write(out / "config.json", {**_read_json(out, "config.json"), **carried})
    for name in CARRIED_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)
    return model


def load(folder: Path) -> Decoder:
    """The model of an export folder, or of any Glm4Moe folder: one file of weights or several with an index, any dtype.

    Raises UserError N9-MOD-001 when the folder is none, or is damaged; N9-MOD-002 when this decoder computes otherwise.
    Layers for predicting further tokens at once, which lie behind the last one, are left out, as transformers does.
    """
    config = _read_json(folder, "config.json")
    shape = shape_of(config, folder)
    model = Decoder(shape, seed=None)
    wanted = {name: (tensor, stored) for name, tensor, stored in _to_glm(model)}
    further = tuple(f"model.layers.{shape.layers + number}." for number in range(_further_layers(config)))
    unknown: list[str] = []
    for path in _weight_files(folder):
        try:  # read, not memory-mapped: a map of a file that someone replaces ends the process
            given = load_bytes(path.read_bytes())
        except (ValueError, SafetensorError, OSError) as error:
            raise UserError("N9-MOD-001", f"the model is damaged: {error}", str(path), "export it again") from error
        for name, tensor in given.items():
            if name in wanted:
                _take(name, *wanted.pop(name), tensor, folder)
            elif not name.startswith(further or ("\0",)):
                unknown.append(name)
    missing = [name for name, (tensor, _) in wanted.items() if tensor.numel()]
    if missing:
        raise UserError("N9-MOD-001", f"weight {missing[0]} is missing ({len(missing)} in all)", str(folder), "export it again")
    if unknown:
        told = ", ".join(sorted(unknown)[:3])
        raise UserError("N9-MOD-001", f"weights that this shape has no place for: {told}", str(folder))
    return model


def read_shape(folder: Path) -> Shape:
    """The shape that a folder's config.json describes; its weights need not be there. Raises as `load` does."""
    return shape_of(_read_json(folder, "config.json"), folder)


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    if not (folder / name).is_file():
        raise UserError(
            "N9-MOD-001", f"no {name} in {folder}", str(folder), "name a folder with it: `export` of a run, or a download"
        )
    try:
        tree = json.loads((folder / name).read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise UserError("N9-MOD-001", f"the model is damaged: {error}", str(folder / name), "export it again") from error
    if not isinstance(tree, dict):
        raise UserError("N9-MOD-001", f"{name} is no table", str(folder / name), "export it again")
    return tree


def _weight_files(folder: Path) -> list[Path]:
    """The one file, or those that the index names. None of them may lie outside the folder."""
    if (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file():
        names = {WEIGHTS}
    else:
        found = _read_json(folder, INDEX).get("weight_map")
        names = set(map(str, found.values())) if isinstance(found, dict) else set()
    bad = sorted(name for name in names if Path(name).name != name or not (folder / name).is_file())
    if bad or not names:
        raise UserError("N9-MOD-001", f"no {bad[0] if bad else WEIGHTS} in {folder}", str(folder), "export it again")
    return [folder / name for name in sorted(names)]


@torch.no_grad()
def _take(name: str, ours: Tensor, stored: tuple[int, ...], given: Tensor, folder: Path) -> None:
    """Copies `given` into `ours`, which may be the first rows or columns of it: the rest must be zeros then."""
    if tuple(given.shape) != stored:
        problem = f"has shape {list(given.shape)}, not {list(stored)}"
        raise UserError("N9-MOD-001", f"weight {name} {problem}", str(folder), "export it again")
    if not given.is_floating_point():
        raise UserError("N9-MOD-002", f"weight {name} is {given.dtype}, and quantised models are not read", str(folder))
    own = given[tuple(slice(size) for size in ours.shape)]
    if own.shape != given.shape and given.count_nonzero() != own.count_nonzero():
        raise UserError("N9-MOD-001", f"weight {name} is not zero beyond its expert's width", str(folder), "export it again")
    ours.copy_(own)


def _padded(tensor: Tensor, stored: tuple[int, ...]) -> Tensor:
    """With zeros up to the shape `stored`: rows of gate and up and columns of down that are zero add exactly nothing."""
    if tuple(tensor.shape) == stored:
        return tensor
    whole = tensor.new_zeros(stored)
    whole[tuple(slice(size) for size in tensor.shape)] = tensor
    return whole


def _to_glm(model: Decoder) -> Iterator[tuple[str, Tensor, tuple[int, ...]]]:
    """Each weight's name in the Glm4Moe layout, a view on ours, and the shape it has there: one map to write and read by."""
    for name, tensor, width in _named(model):
        stored = tuple(tensor.shape)
        if width is not None:
            stored = (stored[0], width) if name.endswith("down_proj.weight") else (width, stored[1])
        yield name, tensor, stored


def _named(model: Decoder) -> Iterator[tuple[str, Tensor, int | None]]:
    """As `_to_glm`, with the width of an expert in the file in place of a shape."""
    yield "model.embed_tokens.weight", model.embedding.weight, None
    yield "model.norm.weight", model.norm.weight, None
    yield "lm_head.weight", model.head.weight, None
    for number, layer in enumerate(model.layers):
        assert isinstance(layer, Layer)
        at = f"model.layers.{number}"
        yield f"{at}.input_layernorm.weight", layer.attention_norm.weight, None
        yield f"{at}.post_attention_layernorm.weight", layer.mlp_norm.weight, None
        for name, tensor in layer.attention.named_parameters():
            yield f"{at}.self_attn.{name}", tensor, None
        if isinstance(layer.mlp, FeedForward):
            yield from _feed_forward(f"{at}.mlp", layer.mlp.gate_up.weight.flatten(0, 1), layer.mlp.down.weight, None)
            continue
        yield f"{at}.mlp.gate.weight", layer.mlp.router.weight, None
        yield f"{at}.mlp.gate.e_score_correction_bias", layer.mlp.router.e_score_correction_bias, None
        for expert in range(model.shape.experts):
            experts, place = layer.mlp.experts.place(expert)
            name, width = f"{at}.mlp.experts.{expert}", model.shape.expert_dim
            yield from _feed_forward(name, experts.gate_up[place].T, experts.down[place].T, width)
        name = f"{at}.mlp.shared_experts"
        if layer.mlp.shared is not None:
            shared = layer.mlp.shared
            yield from _feed_forward(name, shared.gate_up.weight.flatten(0, 1), shared.down.weight, None)
        else:  # in Glm4Moe they are always there, of width 0 where there are none
            dim = model.shape.dim
            yield from _feed_forward(name, torch.zeros(0, dim), torch.zeros(dim, 0), None)


def _feed_forward(at: str, gate_up: Tensor, down: Tensor, width: int | None) -> Iterator[tuple[str, Tensor, int | None]]:
    gate, up = gate_up.tensor_split(2, 0)
    yield f"{at}.gate_proj.weight", gate, width
    yield f"{at}.up_proj.weight", up, width
    yield f"{at}.down_proj.weight", down, width


def _config(shape: Shape) -> dict[str, object]:
    own = {EXPERT_DIMS: list(shape.expert_dims)} if shape.expert_dims else {}
    rope = {"rope_theta": shape.rope_theta, "partial_rotary_factor": shape.rotary}
    return own | {
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
        "norm_topk_prob": shape.norm_topk,
        "routed_scaling_factor": shape.routed_scaling,
        "use_qk_norm": shape.qk_norm,
        "attention_bias": shape.attention_bias,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "rms_norm_eps": shape.norm_eps,
        **rope,
        "rope_parameters": {"rope_type": "default", **rope},
        "num_nextn_predict_layers": 0,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }


# What a Glm4Moe folder may say otherwise and this decoder does not compute. A key that is left out means transformers' default.
_ONLY = {
    "model_type": "glm4_moe",
    "n_group": 1,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "rope_type": "default",
    "quantization_config": None,
}

# Key of config.json -> our name and transformers' default (Glm4MoeConfig, transformers 5.23); None: it has to be there.
_SIZES: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab", None),
    "num_hidden_layers": ("layers", None),
    "hidden_size": ("dim", None),
    "num_attention_heads": ("heads", None),
    "num_key_value_heads": ("kv_heads", None),
    "n_routed_experts": ("experts", None),
    "num_experts_per_tok": ("experts_per_token", None),
    "moe_intermediate_size": ("expert_dim", None),
    "n_shared_experts": ("shared_experts", 1),
    "first_k_dense_replace": ("dense_layers", 1),
    "intermediate_size": ("dense_dim", None),
    "use_qk_norm": ("qk_norm", False),
    "rms_norm_eps": ("norm_eps", 1e-5),
    "head_dim": ("head_dim", 0),
    "attention_bias": ("attention_bias", False),
    "norm_topk_prob": ("norm_topk", True),
    "routed_scaling_factor": ("routed_scaling", 1.0),
    EXPERT_DIMS: ("expert_dims", ()),
}


def shape_of(config: dict[str, Any], folder: Path) -> Shape:
    """The shape that a Glm4Moe config.json describes, of a release of transformers before or after 5.

    Raises UserError N9-MOD-001 where it is damaged, N9-MOD-002 where this decoder computes otherwise.
    """
    rope: dict[str, Any] = {"rope_theta": 10_000.0, "partial_rotary_factor": 0.5}
    tables = [given for key in ("rope_scaling", "rope_parameters") if isinstance(given := config.get(key), dict)]
    for given in (config, *tables):
        rope |= {key: given[key] for key in rope if given.get(key) is not None}
    kinds = {given.get("rope_type") or given.get("type") or "default" for given in tables}
    said = {**config, "rope_type": max(kinds - {"default"}, default="default")}
    for name, wanted in _ONLY.items():
        found = said.get(name, wanted)
        if found != wanted:
            raise UserError("N9-MOD-002", f"{name} = {found!r}, and this decoder knows {wanted!r} only", str(folder))
    sizes = {ours: config.get(theirs, default) for theirs, (ours, default) in _SIZES.items()}
    missing = [theirs for theirs, (ours, _) in _SIZES.items() if sizes[ours] is None]
    if missing or "model_type" not in config:
        told = ", ".join(missing or ["model_type"])
        raise UserError("N9-MOD-001", f"config.json lacks {told}", str(folder), "export it again")
    if not sizes["dense_layers"]:
        sizes["dense_dim"] = 0
    return Shape(**sizes, rope_theta=float(rope["rope_theta"]), rotary=float(rope["partial_rotary_factor"]))


def _further_layers(config: dict[str, Any]) -> int:
    return int(config.get("num_nextn_predict_layers") or config.get("num_mtp_layers") or 0)


def _write(path: Path, tree: object) -> None:
    path.write_text(json.dumps(tree, indent=2, sort_keys=True) + "\n", "utf-8")
