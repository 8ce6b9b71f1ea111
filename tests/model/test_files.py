from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load as load_bytes
from safetensors.torch import save_file

from ninthsky.errors import UserError
from ninthsky.model import Decoder, Shape
from ninthsky.model.files import load, save

SHAPES = {
    "usual": Shape(97, 3, 32, 4, 2, 4, 2, 24, dense_layers=1, dense_dim=48),
    "no qk-norm, two shared, wide rope": Shape(
        101, 2, 48, 6, 6, 8, 3, 16, shared_experts=2, dense_layers=0, dense_dim=0, qk_norm=False, rope_theta=500_000.0
    ),
    "all dense but the last": Shape(64, 3, 32, 2, 1, 2, 1, 8, dense_layers=2, dense_dim=40),
}


def trained(shape: Shape) -> Decoder:
    """Not really trained: weights as drawn, norms and biases moved off their start, so that a mix-up of any shows."""
    model = Decoder(shape, seed=5)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith(("norm.weight", "e_score_correction_bias")):
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


@pytest.mark.parametrize("change", [{"n_group": 2}, {"partial_rotary_factor": 0.5}, {"tie_word_embeddings": True},
                                    {"routed_scaling_factor": 2.5}, {"model_type": "llama"}, {"head_dim": 64}])  # fmt: skip
def test_a_model_that_would_answer_wrongly_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    save(trained(SHAPES["usual"]), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    if "partial_rotary_factor" in change:
        config["rope_parameters"].update(change)
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
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
