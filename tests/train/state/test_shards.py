from __future__ import annotations

from pathlib import Path

import pytest
import xxhash

torch = pytest.importorskip("torch")

from ninthsky.train.state import shards  # noqa: E402

STATE = {
    "weight/a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "weight/half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "empty": torch.zeros(0, 4),
    "step": torch.tensor(7, dtype=torch.int64),
}


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    written = shards.write(tmp_path, 2, 7, STATE, {"note": 1})
    tensors, extra = shards.read(tmp_path, 2, 7)
    assert extra == {"note": 1}
    assert list(tensors) == list(STATE)
    for name, tensor in STATE.items():
        assert tensors[name].dtype == tensor.dtype
        assert tensors[name].shape == tensor.shape
        assert tensors[name].equal(tensor)
    raw = written.path.read_bytes()
    assert (len(raw), xxhash.xxh3_64_hexdigest(raw)) == (written.size, written.xxh3)
    assert [path.name for path in tmp_path.iterdir()] == ["shard-2-7"], "no draft is left"


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    assert shards.write(tmp_path, 0, 1, STATE, {}).xxh3 == shards.write(tmp_path, 0, 1, STATE, {}).xxh3


def test_a_transposed_tensor_keeps_its_values(tmp_path: Path) -> None:
    shards.write(tmp_path, 0, 0, {"t": STATE["weight/a"].T}, {})
    assert shards.read(tmp_path, 0, 0)[0]["t"].equal(STATE["weight/a"].T)


@pytest.mark.parametrize("place", [0, 9, 40, -20, -1])
def test_one_flipped_bit_anywhere_is_refused(tmp_path: Path, place: int) -> None:
    path = shards.write(tmp_path, 0, 1, STATE, {}).path
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)
    with pytest.raises(shards.ShardError, match="altered"):
        shards.read(tmp_path, 0, 1)


@pytest.mark.parametrize("size", [0, 5, 30, -1])
def test_a_cut_file_is_refused(tmp_path: Path, size: int) -> None:
    path = shards.write(tmp_path, 0, 1, STATE, {}).path
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(shards.ShardError):
        shards.read(tmp_path, 0, 1)


def test_anothers_shard_is_refused(tmp_path: Path) -> None:
    shards.write(tmp_path, 0, 1, STATE, {}).path.rename(tmp_path / "shard-3-1")
    with pytest.raises(shards.ShardError, match="holds rank 0"):
        shards.read(tmp_path, 3, 1)
    with pytest.raises(shards.ShardError, match="cannot read"):
        shards.read(tmp_path, 0, 1)


def test_only_this_ranks_older_shards_go(tmp_path: Path) -> None:
    for rank, step in ((1, 8), (1, 9), (1, 10), (11, 8)):
        shards.write(tmp_path, rank, step, {}, {})
    shards.remove_before(tmp_path, 1, 9)
    assert sorted(path.name for path in tmp_path.glob("shard-*")) == ["shard-1-10", "shard-1-9", "shard-11-8"]


def test_a_removed_shards_memory_is_written_again_only_where_nobody_holds_it(tmp_path: Path) -> None:
    folder = tmp_path / "rank"
    folder.mkdir()
    for held in (False, True):
        old = shards.write(folder, 0, 1, {"w": torch.ones(100)}, {}).path
        inode, link = old.stat().st_ino, tmp_path / "held"
        if held:
            link.hardlink_to(old)
            before = link.read_bytes()
        shards.remove_before(folder, 0, 2)
        new = shards.write(folder, 0, 2, {"w": torch.zeros(7)}, {}).path  # a smaller one: nothing of the old is left behind it
        assert (new.stat().st_ino == inode) is not held
        assert shards.read(folder, 0, 2)[0]["w"].tolist() == [0.0] * 7
        assert not held or link.read_bytes() == before
        shards.remove_before(folder, 0, 3)
