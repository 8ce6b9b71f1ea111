from __future__ import annotations

import io
import tokenize
from datetime import timedelta
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402
from torch._C._distributed_c10d import HashStore  # noqa: E402

import ninthsky  # noqa: E402
from ninthsky.guard.probe.group import carrier  # noqa: E402
from ninthsky.train.state import checkpoint, shards  # noqa: E402
from ninthsky.train.step import device  # noqa: E402
from ninthsky.train.step.loop import Gate, Recipe, Trainer  # noqa: E402
from ninthsky.train.step.loss import next_token_loss  # noqa: E402
from ninthsky.train.vet import simulated  # noqa: E402
from tests.train.small import cursor, model  # noqa: E402

VENDORS = {"cuda", "npu", "nccl", "hccl", "gloo", "rocm", "hip", "xpu", "mps", "musa", "mlu", "torch_npu"}
ROOMS = ("train", "model", "align", "signal", "serve")


def names_and_strings(path: Path) -> set[str]:
    """Identifiers and quoted words of the code; what comments and docstrings tell does not run."""
    found: set[str] = set()
    before = tokenize.NEWLINE
    for token in tokenize.generate_tokens(io.StringIO(path.read_text("utf-8")).readline):
        stands_alone = before in {tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.NL, tokenize.ENCODING}
        if token.type == tokenize.NAME or (token.type == tokenize.STRING and not stands_alone):
            found.add(token.string.strip("rbfu'\"").lower())
        if token.type != tokenize.COMMENT:
            before = token.type
    return found


def test_one_file_names_vendors_and_their_back_ends() -> None:
    root = Path(ninthsky.__file__).parent
    named = {
        str(path.relative_to(root)): names_and_strings(path) & VENDORS
        for room in ROOMS
        for path in sorted((root / room).rglob("*.py"))
    }
    assert {path for path, names in named.items() if names} <= {"train/step/device.py", "train/vet/collectives.py"}, named
    assert named["train/step/device.py"]


def test_host_tensors_go_over_gloo_and_device_tensors_over_the_devices_own_back_end() -> None:
    made: list[str] = []

    def young(store: object, rank: int, size: int, timeout: timedelta) -> dist.ProcessGroupGloo:
        made.append("young")
        return dist.ProcessGroupGloo(store, rank, size, timeout)  # type: ignore[arg-type]

    dist.Backend.register_backend("young", young, devices=["meta"])
    group = carrier("127.0.0.1", "meta", "young")(HashStore(), 0, 1, timedelta(seconds=5))
    assert made == ["young"]
    tensor = torch.ones(3)
    group.allreduce([tensor]).wait()
    assert tensor.tolist() == [1, 1, 1]
    assert group._get_backend(torch.device("meta")) is not group._get_backend(torch.device("cpu"))
    with pytest.raises(RuntimeError, match="knows no process-group back end 'unheard'"):
        carrier("127.0.0.1", "meta", "unheard")(HashStore(), 0, 1, timedelta(seconds=5))


def test_a_copy_on_the_host_is_a_plain_tensor_of_the_same_kind() -> None:
    like = torch.zeros(3, 4, dtype=torch.bfloat16).T
    held = device.host_buffer(like)
    assert (held.shape, held.dtype, held.device.type, held.is_contiguous()) == (like.shape, like.dtype, "cpu", True)


def two_steps(trainer: Trainer) -> None:
    for _ in range(2):
        trainer.local_gradients(cursor().read(trainer.step))
        trainer.apply(Gate.total([trainer.gate_values()]))


def test_state_moves_from_the_cpu_to_another_device_and_back(tmp_path: Path) -> None:
    """By checkpoint and by replica, and trains on in the same bits. The device is a PrivateUse1 one, as a young vendor's is.

    Training on it is proved in vet/on_device.py, in a process that knew of it before its first backward.
    """
    there = simulated.register()
    here, away, back, replica = (
        Trainer(model(seed), next_token_loss, Recipe(), 10, device=where)
        for seed, where in enumerate([torch.device("cpu"), there, torch.device("cpu"), there])
    )
    two_steps(here)
    assert not checkpoint.save(here, tmp_path / "first").problem
    assert checkpoint.restore(away, tmp_path / "first").step == 2 and away.digest() == here.digest()
    assert {piece.local.device for piece in away.pieces} == {there}
    assert not checkpoint.save(away, tmp_path / "second").problem
    assert checkpoint.restore(back, tmp_path / "second").step == 2
    shards.write(tmp_path, 0, 1, away.state_shard(), {})
    replica.load_shard(shards.read(tmp_path, 0, 1)[0])
    assert (replica.digest(), replica.step) == (here.digest(), 2)
    two_steps(here)
    two_steps(back)
    assert back.digest() == here.digest()
