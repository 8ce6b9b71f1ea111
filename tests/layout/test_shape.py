from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ninthsky.config.load import parse_settings
from ninthsky.config.presets import PRESETS
from ninthsky.config.size import SIZES
from ninthsky.errors import UserError
from ninthsky.layout.cluster import Cluster, chip_named
from ninthsky.layout.cut import Cut, Cuts
from ninthsky.layout.search import MESH_RULES, Problem
from ninthsky.layout.shape import Sizes, Work
from ninthsky.model.shape import Shape


@pytest.mark.parametrize("size", list(SIZES))
def test_every_size_counts_as_the_model_does(size: str) -> None:
    model = parse_settings(f'size = "{size}"', "test").model
    ours, theirs = Sizes.of(model, 1000), Shape.of(model, 1000)
    assert ours.parameters == theirs.parameters()
    assert ours.active == theirs.active_parameters()
    assert ours.flops_per_token(512) == pytest.approx(theirs.flops_per_token(512), rel=1e-12)


@pytest.mark.parametrize("preset", list(PRESETS))
def test_every_preset_counts_as_the_model_does(preset: str) -> None:
    model = parse_settings(f'[model]\npreset = "{preset}"', "test").model
    ours, theirs = Sizes.of(model, 1000), Shape.of(model, 1000)
    assert ours.parameters == theirs.parameters()
    assert ours.active == theirs.active_parameters()
    assert ours.flops_per_token(512) == pytest.approx(theirs.flops_per_token(512), rel=1e-12)


@settings(max_examples=20, deadline=None)
@given(
    layers=st.integers(1, 3), kv=st.integers(1, 2), group=st.integers(1, 3), head=st.sampled_from([2, 4]),
    experts=st.integers(1, 5), expert_dim=st.sampled_from([4, 6]), shared=st.integers(0, 2), dense=st.integers(0, 3),
    vocab=st.integers(8, 40), norm=st.booleans(),
)  # fmt: skip
def test_real_decoders_have_as_many_weights(
    layers: int, kv: int, group: int, head: int, experts: int, expert_dim: int, shared: int, dense: int, vocab: int, norm: bool
) -> None:
    from ninthsky.model import Decoder

    heads, dense = kv * group, min(dense, layers)
    dim = heads * head
    shape = Shape(
        vocab=vocab, layers=layers, dim=dim, heads=heads, kv_heads=kv, experts=experts, experts_per_token=1,
        expert_dim=expert_dim, shared_experts=shared, dense_layers=dense, dense_dim=8, qk_norm=norm,
    )  # fmt: skip
    sizes = Sizes(
        layers=layers, dim=dim, heads=heads, kv_heads=kv, head_dim=head, vocab=vocab, experts=experts, experts_per_token=1,
        expert_dim=expert_dim, shared_experts=shared, dense_layers=dense, dense_dim=8, qk_norm=norm,
    )  # fmt: skip
    assert sizes.parameters == sum(p.numel() for p in Decoder(shape, seed=None).parameters())


def test_a_published_config_gives_the_published_count(tmp_path: Path) -> None:
    """Qwen3-30B-A3B: 30.5 B weights, 3.3 B active (its model card); figures of its config.json."""
    config = {
        "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
        "vocab_size": 151936, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "use_qk_norm": True,
    }  # fmt: skip
    sizes = Sizes.of_config(json.loads(json.dumps(config)), "config.json")
    assert sizes.parameters / 1e9 == pytest.approx(30.5, abs=0.05)
    assert sizes.active / 1e9 == pytest.approx(3.3, abs=0.06)


def test_a_config_without_a_size_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        Sizes.of_config({"hidden_size": 8}, "here.json")
    assert (
        caught.value.code == "N9-LAY-002" and "num_attention_heads" in caught.value.what and caught.value.where == "here.json"
    )


def test_experts_of_two_sizes_are_cut_and_counted_by_size() -> None:
    model = parse_settings("[model]\nexpert_dims = [96, 96, 32, 32, 32, 32, 32, 32]", "test").model
    sizes, shape = Sizes.of(model, 1000), Shape.of(model, 1000)
    assert sizes.expert_sizes == shape.expert_sizes == ((2, 96), (6, 32))
    assert sizes.parameters == shape.parameters() and sizes.active == shape.active_parameters()
    rules = {rule.name: rule for rule in MESH_RULES}
    work, cluster = Work(sequence=128, batch=16), Cluster(2, 4, chip_named("cpu"), 2.0)
    for ep, left in ((1, 0), (2, 0), (4, 4), (8, 8)):  # 2 and 6 leave 2 + 2 over 4 ranks, 2 + 6 over 8
        cuts = Cuts.of(Cut(dp_shard=8, ep=ep))
        assert int(np.asarray(rules["experts"].figure(cuts, Problem(sizes, work, cluster))).flat[0]) == left
