from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as load_bytes
from safetensors.torch import save_file

from ninthsky.config.load import parse_settings
from ninthsky.errors import UserError
from ninthsky.model import Decoder, Shape
from ninthsky.model.files import load, save, shape_of

SHAPES = {
    "usual": Shape(97, 3, 32, 4, 2, 4, 2, 24, dense_layers=1, dense_dim=48),
    "no qk-norm, two shared, wide rope": Shape(
        101, 2, 48, 6, 6, 8, 3, 16, shared_experts=2, dense_layers=0, dense_dim=0, qk_norm=False, rope_theta=500_000.0
    ),
    "all dense but the last": Shape(64, 3, 32, 2, 1, 2, 1, 8, dense_layers=2, dense_dim=40),
    "experts of two sizes": Shape(97, 2, 32, 4, 2, 8, 2, 24, expert_dims=(24, 24, 8, 8, 8, 8, 8, 8), dense_layers=0),
    "no shared experts, wide heads": Shape(
        97, 2, 32, 4, 2, 4, 2, 24, shared_experts=0, dense_layers=0, head_dim=12, rotary=0.5, attention_bias=True,
        norm_topk=False, routed_scaling=2.5,
    ),
}  # fmt: skip


def trained(shape: Shape) -> Decoder:
    """Not really trained: weights as drawn, norms and biases moved off their start, so that a mix-up of any shows."""
    model = Decoder(shape, seed=5)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith(("norm.weight", "bias")):
                tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
            else:
                tensor *= 3.0
    return model.eval()


@pytest.mark.parametrize("name", SHAPES)
def test_what_was_saved_is_loaded_to_the_bit(tmp_path: Path, name: str) -> None:
    model = trained(SHAPES[name])
    save(model, tmp_path)
    again = load(tmp_path)
    assert again.shape == model.shape
    wanted, got = model.state_dict(), again.state_dict()
    assert wanted.keys() == got.keys() and all(torch.equal(wanted[key], got[key]) for key in wanted)


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        save(trained(SHAPES["usual"]), tmp_path / folder)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize("name", SHAPES)
def test_transformers_gives_equal_logits(tmp_path: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra `proof` is not installed")
    model = trained(SHAPES[name])
    save(model, tmp_path)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(theirs).__name__ == "Glm4MoeForCausalLM"
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    tokens = torch.randint(0, model.shape.vocab, (3, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, given = model.logits(model(tokens)), theirs.eval()(tokens).logits
    assert float(ours.std()) > 0.1
    assert float((ours - given).abs().max()) <= 1e-5


def test_transformers_generates_the_same_answer(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra `proof` is not installed")
    from ninthsky.model.generate import generate

    model = trained(SHAPES["usual"])
    save(model, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    prompt = [7, 30, 12, 55, 8]
    given = theirs.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, 5, dtype=torch.long), max_new_tokens=20)
    wanted = given[0, 5:].tolist()
    assert generate(model, prompt, 20) == (wanted[: wanted.index(1)] if 1 in wanted else wanted)


def test_tokenizer_goes_along(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers", reason="the extra `proof` is not installed")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=97 + 256, special_tokens=["<pad>", "<eos>", "<user>", "<assistant>", "<signal>", "</signal>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(["the kernel runs", "the kernel 内核"] * 5, trainer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    save(trained(SHAPES["usual"]), tmp_path / "export", tmp_path / "tokenizer.json")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "export")
    text = "the kernel runs 内核"
    assert theirs(text)["input_ids"] == tokenizer.encode(text).ids
    assert theirs.decode(theirs(text)["input_ids"]) == text
    assert theirs.eos_token_id == 1 and theirs.pad_token_id == 0


GLM = dict(
    vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    head_dim=16, moe_intermediate_size=24, n_routed_experts=8, num_experts_per_tok=2, eos_token_id=1, pad_token_id=0,
)  # fmt: skip
PUBLISHED: dict[str, dict[str, Any]] = {
    "as GLM-4.5": dict(attention_bias=True, partial_rotary_factor=0.5, routed_scaling_factor=2.5, use_qk_norm=True,
                       first_k_dense_replace=2, rope_theta=1_000_000.0),
    "as GLM-4.5-Air": dict(attention_bias=True, partial_rotary_factor=0.5, rope_theta=1_000_000.0),
    "transformers' defaults, unscaled choices": dict(norm_topk_prob=False),
}  # fmt: skip


@pytest.mark.parametrize("kind", PUBLISHED)
def test_a_folder_made_by_transformers_is_read_and_given_back(tmp_path: Path, kind: str) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra `proof` is not installed")
    made = transformers.Glm4MoeForCausalLM(transformers.Glm4MoeConfig(**GLM, **PUBLISHED[kind])).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in made.state_dict().items():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2 + float(name.endswith("norm.weight")))
    tokens = torch.randint(0, 97, (2, 30), generator=generator)
    for folder, dtype, size in (
        ("whole", torch.float32, "1GB"),
        ("shards", torch.float32, "40KB"),
        ("bf16", torch.bfloat16, "40KB"),
    ):
        made.to(dtype).save_pretrained(tmp_path / folder, max_shard_size=size)
        assert (len(list((tmp_path / folder).glob("*.safetensors"))) > 1) == (folder != "whole")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / folder, dtype=torch.float32).eval()
        ours = load(tmp_path / folder).eval()
        with torch.no_grad():
            wanted, got = theirs(tokens).logits, ours.logits(ours(tokens))
        assert float(wanted.std()) > 0.5
        assert float((got - wanted).abs().max()) <= 1e-5
        save(ours, tmp_path / "back")
        back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back").state_dict()
        assert all(torch.equal(back[name], tensor) for name, tensor in theirs.state_dict().items())


def test_a_config_as_it_is_published_is_read() -> None:
    """GLM-4.5's, as its finetunes carry it: rotary settings at the top, and layers for further tokens."""
    config = {
        "model_type": "glm4_moe", "attention_bias": True, "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120,
        "partial_rotary_factor": 0.5, "intermediate_size": 12288, "moe_intermediate_size": 1536, "norm_topk_prob": True,
        "num_attention_heads": 96, "n_group": 1, "topk_group": 1, "n_routed_experts": 160, "n_shared_experts": 1,
        "routed_scaling_factor": 2.5, "num_experts_per_tok": 8, "first_k_dense_replace": 3, "num_hidden_layers": 92,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 1000000,
        "num_nextn_predict_layers": 1, "tie_word_embeddings": False, "use_qk_norm": True, "vocab_size": 151552,
    }  # fmt: skip
    shape = shape_of(config, Path("GLM-4.5"))
    assert (shape.rotary_dim, shape.routed_scaling, shape.rope_theta, shape.norm_eps) == (64, 2.5, 1e6, 1e-5)
    assert shape == Shape.of(parse_settings('[model]\npreset = "glm-4.5"', "run.toml").model, shape.vocab)


def test_shards_are_what_transformers_reads_and_an_older_export_does_not_stay_beside_them(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra `proof` is not installed")
    model = trained(SHAPES["experts of two sizes"])
    save(trained(SHAPES["usual"]), tmp_path)
    save(model, tmp_path, dtype=torch.bfloat16, shard_bytes=20_000)
    assert not (tmp_path / "model.safetensors").exists()
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 3 and all(path.stat().st_size < 30_000 for path in files)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ours, tokens = load(tmp_path).eval(), torch.arange(30)[None]
    with torch.no_grad():
        assert float((ours.logits(ours(tokens)) - theirs(tokens).logits).abs().max()) <= 1e-5
    bias = "layers.1.mlp.router.e_score_correction_bias"
    assert torch.equal(ours.state_dict()[bias], model.state_dict()[bias])
    save(model, tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors*")] == ["model.safetensors"]


def test_layers_for_further_tokens_are_left_out(tmp_path: Path) -> None:
    save(trained(SHAPES["usual"]), tmp_path)
    weights = load_bytes((tmp_path / "model.safetensors").read_bytes())
    save_file({**weights, "model.layers.3.eh_proj.weight": torch.ones(32, 64)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="no place"):
        load(tmp_path)
    change_config(tmp_path, {"num_nextn_predict_layers": 1})
    assert load(tmp_path).shape == SHAPES["usual"]


def test_padding_of_smaller_experts_has_to_be_zero(tmp_path: Path) -> None:
    shape = SHAPES["experts of two sizes"]
    save(trained(shape), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    weights = load_bytes((tmp_path / "model.safetensors").read_bytes())
    name = "model.layers.0.mlp.experts.5.down_proj.weight"
    assert weights[name].shape == (32, 24) and not weights[name][:, 8:].any() and weights[name][:, :8].all()
    del config["n9_expert_dims"]  # as if another program had written it again: padded experts, the same answers
    (tmp_path / "config.json").write_text(json.dumps(config))
    padded, tokens = load(tmp_path).eval(), torch.arange(20)[None]
    assert padded.shape.expert_dims == () and padded.shape.parameters() > shape.parameters()
    with torch.no_grad():
        assert float((padded(tokens) - trained(shape)(tokens)).abs().max()) <= 1e-5
    weights[name][0, 9] = 1.0
    save_file(weights, tmp_path / "model.safetensors")
    change_config(tmp_path, {"n9_expert_dims": list(shape.expert_dims)})
    with pytest.raises(UserError, match="not zero beyond"):
        load(tmp_path)


def change_config(folder: Path, change: dict[str, object]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


@pytest.mark.parametrize(
    "change",
    [
        {"n_group": 2},
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"tie_word_embeddings": True},
        {"model_type": "llama"},
        {"hidden_act": "gelu"},
        {"quantization_config": {"quant_method": "fp8"}},
    ],
)
def test_a_model_that_would_answer_wrongly_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    save(trained(SHAPES["usual"]), tmp_path)
    change_config(tmp_path, change)
    with pytest.raises(UserError, match="N9-MOD-002"):
        load(tmp_path)


def test_damage_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        load(tmp_path)
    save(trained(SHAPES["usual"]), tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    weights = load_bytes(whole)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="N9-MOD-001"):
        load(tmp_path)
    save_file({name: tensor for name, tensor in weights.items() if name != "lm_head.weight"}, path)
    with pytest.raises(UserError, match=r"lm_head\.weight is missing"):
        load(tmp_path)
    save_file({**weights, "model.layers.3.input_layernorm.weight": torch.ones(32)}, path)
    with pytest.raises(UserError, match="no place"):
        load(tmp_path)
    save_file({**weights, "model.norm.weight": torch.ones(31)}, path)
    with pytest.raises(UserError, match="has shape"):
        load(tmp_path)
    save_file({**weights, "model.norm.weight": torch.ones(32, dtype=torch.int8)}, path)
    with pytest.raises(UserError, match="quantised"):
        load(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        load(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    for text in ('{"weight_map": {"a": "../a.safetensors"}}', '{"weight_map": {}}', "[]", "{"):
        index.write_text(text)
        with pytest.raises(UserError, match="N9-MOD-001"):
            load(tmp_path)
    index.unlink()
    change_config(tmp_path, {"hidden_size": None})
    with pytest.raises(UserError, match="hidden_size"):
        load(tmp_path)
