from __future__ import annotations

from typing import get_args

import pytest

from ninthsky.config.load import parse_settings
from ninthsky.config.presets import PRESETS
from ninthsky.config.schema import Preset as Name
from ninthsky.errors import UserError
from ninthsky.model import Shape


def test_every_preset_can_be_named_in_run_toml() -> None:
    assert set(get_args(Name)) == set(PRESETS)
    with pytest.raises(UserError, match=r"did you mean 'glm-4\.5'"):
        parse_settings('[model]\npreset = "glm-4-5"', "run.toml")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_parameters_that_its_source_states(name: str) -> None:
    """To one unit of the last digit that was published, counted as its publisher counts."""
    preset = PRESETS[name]
    shape = Shape.of(parse_settings(f'[model]\npreset = "{name}"', "run.toml").model, preset.vocab)
    total, active = shape.parameters(), shape.active_parameters()
    if preset.width_met is not None:
        met = shape.experts_per_token * sum(shape.expert_dims) // shape.experts
        active += 3 * shape.dim * shape.sparse_layers * (preset.width_met - met)
    if not preset.tables:
        total, active = total - 2 * shape.vocab * shape.dim, active - 2 * shape.vocab * shape.dim
    if preset.further_layers:  # DeepSeek-V3 (arXiv 2412.19437, 2.2): one more sparse layer, and a projection of two streams
        attention = 2 * shape.dim * shape.head_dim * (shape.heads + shape.kv_heads)
        experts = 3 * shape.dim * shape.expert_dim * (shape.experts + shape.shared_experts)
        total += preset.further_layers * (attention + experts + shape.dim * shape.experts + 2 * shape.dim**2)
    stated_total, total_unit, stated_active, active_unit = preset.stated()
    assert abs(total - stated_total) < total_unit
    assert abs(active - stated_active) < active_unit
    assert preset.source


def test_what_a_person_writes_wins_over_the_preset_and_the_preset_over_the_size() -> None:
    model = parse_settings('size = "nano"\n[model]\npreset = "glm-4.5-air"\nlayers = 2\nqk_norm = true', "run.toml").model
    assert (model.layers, model.qk_norm, model.dim, model.head_dim, model.rotary) == (2, True, 4096, 128, 0.5)


def test_widths_of_experts_give_their_number_and_the_widest() -> None:
    model = parse_settings('size = "nano"\n[model]\nexpert_dims = [64, 64, 32, 32, 32]', "run.toml").model
    shape = Shape.of(model, 512)
    assert (shape.experts, shape.expert_dim, shape.expert_sizes) == (5, 64, ((2, 64), (3, 32)))
    model = parse_settings('size = "nano"\n[model]\nexperts = 4\nexpert_dims = [64, 64, 32, 32, 32]', "run.toml").model
    with pytest.raises(UserError, match="N9-CFG-013"):
        Shape.of(model, 512)
