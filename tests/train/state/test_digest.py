from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from ninthsky.train.inject import Fault, flip_bit  # noqa: E402
from ninthsky.train.state import digest as module  # noqa: E402
from ninthsky.train.state.digest import MASK, Resting, digest, joined, on_device  # noqa: E402


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_every_flipped_bit_shows_in_both_digests(dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 7)  # so that the reduction crosses its chunks
    tensor = torch.randn(5, 9).to(dtype)
    host, device = digest(tensor), int(on_device(tensor.flatten())) & MASK
    for bit in range(8 * tensor.element_size()):
        flipped = tensor.clone()
        flip_bit([flipped], Fault(bit, "flip_weight", 0, 0, bit=bit))
        assert int((flipped.view(torch.uint8) != tensor.view(torch.uint8)).sum()) == 1
        assert digest(flipped) != host and int(on_device(flipped.flatten())) & MASK != device


def test_values_that_change_places_show() -> None:
    tensor = torch.arange(1.0, 9.0)
    assert int(on_device(tensor)) != int(on_device(tensor.flip(0)))


def test_a_digest_leaves_the_storage_free_to_be_resized() -> None:
    tensor = torch.randn(64)
    digest(tensor)
    tensor.untyped_storage().resize_(0)  # as FSDP2 does with gathered weights
    assert digest(torch.empty(0)) == 0


def test_what_changed_at_rest_is_named_and_parts_take_turns() -> None:
    state = {name: torch.randn(8) for name in "abcd"}
    whole, half = Resting(), Resting(2)
    whole.take(state)
    half.take(state, turn=1)
    state["c"][3] += 1e-6
    assert whole.differing(state) == ["c"]
    assert half.differing(state) == []
    half.take(state, turn=1)
    state["b"][0] += 1e-6
    assert half.differing(state) == ["b"]
    half.take(state, turn=1, whole=True)
    state["a"][0] += 1e-6
    assert half.differing(state) == ["a"]


def test_a_joined_digest_fits_a_gate() -> None:
    value = joined([MASK, 3])
    assert int(float(value)) == value and value != joined([3, MASK])
