from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
import torch.distributed as dist  # noqa: E402
from torch import nn  # noqa: E402
from torch._C._distributed_c10d import FileStore, HashStore  # noqa: E402
from torch.distributed._functional_collectives import all_to_all_single, wait_tensor  # noqa: E402
from torch.distributed.device_mesh import init_device_mesh  # noqa: E402
from torch.distributed.fsdp import fully_shard  # noqa: E402
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module  # noqa: E402

from ninthsky.guard.probe.group import GroupGone, GuardGroup, Probe, gloo, register  # noqa: E402
from ninthsky.guard.probe.record import Record, RecordWriter, group_id, parse, read_raw  # noqa: E402
from ninthsky.guard.probe.sockets import GenerationSockets  # noqa: E402

WORLD = 4
Say = Callable[[Any], None]


def _rank(target: Callable[..., None], rank: int, store: Path, said: Any, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    try:
        probe = Probe(RecordWriter(store.parent / f"{rank}.record"), gloo("127.0.0.1"))
        sockets = GenerationSockets()
        register(probe, "cpu")
        dist.init_process_group(
            "guard", store=FileStore(str(store), WORLD), rank=rank, world_size=WORLD, timeout=timedelta(seconds=60)
        )
        target(rank, probe, sockets, lambda value: said.put((rank, value)), *arguments)
    except BaseException:
        said.put((rank, traceback.format_exc()))
    # A process with gloo threads and frozen peers would wait at its exit; what it had to say is said.
    said.close()
    said.join_thread()
    os._exit(0)


class Ranks:
    """Four ranks as forked processes (no import to pay), ended by their own id when the test is over."""

    def __init__(self, target: Callable[..., None], folder: Path, *arguments: Any) -> None:
        context = multiprocessing.get_context("fork")
        self.folder, self.said = folder, context.Queue()
        self.processes = [
            context.Process(target=_rank, args=(target, rank, folder / "store", self.said, arguments), daemon=True)
            for rank in range(WORLD)
        ]

    def __enter__(self) -> Ranks:
        for process in self.processes:
            process.start()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def hear(self, count: int = WORLD, seconds: float = 60) -> dict[int, Any]:
        heard: dict[int, Any] = {}
        while len(heard) < count:
            rank, value = self.said.get(timeout=seconds)
            assert not (isinstance(value, str) and "Traceback" in value), value
            heard[rank] = value
        return heard

    def record(self, rank: int) -> Record:
        raw = read_raw(self.folder / f"{rank}.record")
        assert raw is not None
        record = parse(raw)
        assert record is not None
        return record


def _model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))


def _counts(probe: Probe) -> dict[int, tuple[int, int]]:
    raw = bytes(probe.record._map)
    record = parse(raw)
    assert record is not None
    return {group.id: (group.enqueued, group.completed) for group in record.groups}


def _every_kind(rank: int, probe: Probe, sockets: GenerationSockets, say: Say) -> None:
    mesh = init_device_mesh("cpu", (WORLD,))
    name = mesh.get_group().group_name
    seen: dict[str, int] = {}
    for label, work in (("fsdp", _fsdp), ("tensor parallel", _tensor_parallel), ("functional", _functional), ("c10d", _c10d)):
        before = _counts(probe).get(group_id(name), (0, 0))
        work(rank, mesh)
        after = _counts(probe)[group_id(name)]
        assert after[0] == after[1], f"{label}: {after}"
        seen[label] = after[0] - before[0]
    assert isinstance(mesh.get_group(), GuardGroup)
    assert probe.times().wall > 0 and probe.times().cpu > 0
    say((seen, _counts(probe)))


def _fsdp(rank: int, mesh: Any) -> None:
    model = _model()
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        model(torch.randn(4, 16)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def _tensor_parallel(rank: int, mesh: Any) -> None:
    model = _model()
    parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    model(torch.ones(4, 16)).sum().backward()


def _functional(rank: int, mesh: Any) -> None:
    out = wait_tensor(all_to_all_single(torch.full((WORLD,), float(rank)), [1] * WORLD, [1] * WORLD, mesh.get_group()))
    assert out.tolist() == [0.0, 1.0, 2.0, 3.0]


def _c10d(rank: int, mesh: Any) -> None:
    x = torch.ones(3) * rank
    dist.all_reduce(x, async_op=True).wait()
    assert x.tolist() == [6.0] * 3
    dist.barrier()
    dist.broadcast(x, 1)
    gathered = [torch.empty(3) for _ in range(WORLD)]
    dist.all_gather(gathered, torch.ones(3) * rank)
    assert [int(part[0]) for part in gathered] == [0, 1, 2, 3]


def test_sees_every_collective_of_fsdp_dtensor_and_functional(tmp_path: Path) -> None:
    with Ranks(_every_kind, tmp_path) as ranks:
        heard = ranks.hear()
    seen, counts = heard[0]
    # Two wrapped modules, two steps: at least a gather forwards and a reduce-scatter backwards for each.
    assert seen["fsdp"] >= 8
    assert seen["tensor parallel"] >= 1
    assert seen["functional"] == 1
    assert seen["c10d"] == 4
    assert all(value[1] == counts for value in heard.values()), "ranks count the same calls under the same ids"


def _messages(rank: int, probe: Probe, sockets: GenerationSockets, say: Say) -> None:
    x = torch.ones(2)
    if rank == 0:
        dist.send(x, 1)
        dist.send(x, 1)
    elif rank == 1:
        dist.recv(x, 0)
        dist.recv(x, 0)
    requests = dist.batch_isend_irecv(
        [dist.P2POp(dist.isend, x, (rank + 1) % WORLD), dist.P2POp(dist.irecv, x.clone(), (rank - 1) % WORLD)]
    )
    for request in requests:
        request.wait()
    say(_counts(probe))


def test_messages_between_two_ranks_are_counted_for_the_pair(tmp_path: Path) -> None:
    with Ranks(_messages, tmp_path) as ranks:
        heard = ranks.hear()
    pair = group_id("0:0>1")
    assert heard[0][pair] == heard[1][pair] == (3, 3)
    assert pair not in heard[2]


def _bad_gradient(rank: int, probe: Probe, sockets: GenerationSockets, say: Say) -> None:
    mesh = init_device_mesh("cpu", (WORLD,))
    model = _model()
    fully_shard(model, mesh=mesh)
    found: list[int | None] = []
    for bad in (None, 2, 0):
        probe.watch()
        loss = model(torch.randn(4, 16)).square().mean()
        (loss * float("nan") if rank == bad else loss).backward()
        found.append(probe.first_bad())
        dist.all_reduce(torch.tensor(float("nan")))  # after the watch: costs nothing and says nothing
    say((found, bool(torch.isfinite(next(model.parameters()).grad.to_local()).all())))  # type: ignore[union-attr]


def test_a_bad_gradient_is_seen_before_the_reduce_on_its_own_rank_only(tmp_path: Path) -> None:
    with Ranks(_bad_gradient, tmp_path) as ranks:
        heard = ranks.hear()
    assert [heard[rank][0] for rank in range(WORLD)] == [[None, None, 0], [None] * 3, [None, 0, None], [None] * 3]
    assert not heard[0][1], "after the reduce the NaN is everywhere, so it can no longer be told whose it was"


def _world() -> dist.ProcessGroup:
    assert dist.group.WORLD is not None
    return dist.group.WORLD


def _spread(rank: int, probe: Probe, sockets: GenerationSockets, say: Say) -> None:
    probe.watch()
    x = torch.ones(WORLD)
    if rank == 1:
        x[0] = float("inf")
    y = wait_tensor(all_to_all_single(x, [1] * WORLD, [1] * WORLD, _world()))
    wait_tensor(all_to_all_single(y * 2, [1] * WORLD, [1] * WORLD, _world()))
    say(probe.first_bad())


def test_of_several_bad_ranks_the_source_has_the_lowest_number(tmp_path: Path) -> None:
    with Ranks(_spread, tmp_path) as ranks:
        heard = ranks.hear()
    assert heard == {0: 1, 1: 0, 2: None, 3: None}, "rank 1 sent it, rank 0 passed on what it got"


def _stages(rank: int, probe: Probe, sockets: GenerationSockets, say: Say) -> None:
    """Ranks 0 and 1 are two stages. Rank 0 made three calls before its value goes bad, rank 1 passes that on in its first."""
    x = torch.ones(3)
    probe.watch()
    if rank == 0:
        for moment in range(4):
            probe.at(moment)
            dist.send(x * float("nan") if moment == 3 else x, 1)
    elif rank == 1:
        for _ in range(4):
            dist.recv(x, 0)
        probe.at(4)
        dist.send(x, 2)
    elif rank == 2:
        dist.recv(x, 1)
    say(probe.first_bad())


def test_a_common_clock_tells_which_stage_was_bad_first(tmp_path: Path) -> None:
    with Ranks(_stages, tmp_path) as ranks:
        heard = ranks.hear()
    assert heard[2] is None and heard[3] is None
    assert heard[0] < heard[1], "by number alone it would be the stage that passed it on"
    assert (heard[0], heard[1]) == (3 << 32 | 3, 4 << 32 | 0)


def _frozen(rank: int, probe: Probe, sockets: GenerationSockets, say: Say, abort: Path) -> None:
    x = torch.ones(1000)
    dist.all_reduce(x)
    say(os.getpid())

    def watch() -> None:
        while not abort.exists():
            time.sleep(0.02)
        sockets.abort()

    threading.Thread(target=watch, daemon=True).start()
    probe.cut = abort.exists  # as a rank has it: now and then gloo misses a cut
    try:
        while True:
            dist.all_reduce(x)
            time.sleep(0.005)
    except RuntimeError:
        failure = probe.failure
        probe.let_go()
        dist.destroy_process_group()
        say(failure)


def test_abort_frees_every_rank_that_waits_for_a_frozen_one(tmp_path: Path) -> None:
    abort = tmp_path / "abort"
    with Ranks(_frozen, tmp_path, abort) as ranks:
        pids = ranks.hear()
        time.sleep(0.5)  # stopped while it still writes to the queue, it would keep the queue's lock from the others
        os.kill(pids[2], signal.SIGSTOP)
        time.sleep(1.0)
        assert ranks.said.empty(), "nobody gets out alone"
        stuck = [ranks.record(rank).groups[0] for rank in range(WORLD)]
        assert min(range(WORLD), key=lambda rank: stuck[rank].enqueued) == 2 or len({group.enqueued for group in stuck}) == 1
        abort.touch()
        freed = ranks.hear(3, seconds=20)
        assert set(freed) == {0, 1, 3}
        assert all(freed.values()), "each says which collective failed"


def _deaf(rank: int, probe: Probe, sockets: GenerationSockets, say: Say, scattered: bool) -> None:
    x = torch.ones(1000)
    dist.all_reduce(x)
    if rank == 2:  # enters no more: the others' operation never ends, and nothing tells it so
        say("absent")
        time.sleep(30)
        return
    probe.cut = lambda: True
    try:
        dist.reduce_scatter_tensor(torch.empty(250), x) if scattered else dist.all_reduce(x)
    except GroupGone as gone:
        probe.let_go()
        dist.destroy_process_group()
        say(f"{gone} {probe.stranded}")


@pytest.mark.parametrize("scattered", [False, True])
def test_an_operation_that_does_not_hear_of_the_cut_is_given_up(tmp_path: Path, scattered: bool) -> None:
    """Gloo's reduce_scatter is one for itself: its wait keeps no limit."""
    with Ranks(_deaf, tmp_path, scattered) as ranks:
        heard = ranks.hear(seconds=20)
    assert all("did not end False" in heard[rank] for rank in (0, 1, 3))


def test_a_group_that_was_let_go_refuses(tmp_path: Path) -> None:
    probe = Probe(RecordWriter(tmp_path / "record"), gloo("127.0.0.1"))
    inner = dist.ProcessGroup(HashStore(), 0, 1)
    group = GuardGroup(probe, inner, 0, 1)
    group.setGroupName("g")
    probe.let_go()
    with pytest.raises(GroupGone, match="'g'"):
        group.barrier()


def test_every_collective_method_of_this_torch_is_covered() -> None:
    known = {"all", "gather", "reduce", "scatter", "broadcast", "barrier", "send", "recv"}
    methods = {
        name
        for name in dir(dist.ProcessGroup)
        if not name.startswith("__") and any(word in name.lower() for word in known) and name != "_wait_for_pending_works"
    }
    missing = {name for name in methods if name not in vars(GuardGroup)}
    assert not missing, f"torch has collectives that the guard would not see: {missing}"
