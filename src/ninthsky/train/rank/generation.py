"""Forming and leaving the process groups of a generation."""

from __future__ import annotations

import gc
import queue
import socket
import threading
from datetime import timedelta

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore

from ninthsky.guard.probe.group import BACKEND, Probe
from ninthsky.guard.probe.line import Line
from ninthsky.guard.probe.messages import Assign, Rendezvous, StoreServing

STORE_SECONDS = 30.0
# The guard finds a rank that does not come; a time-out only ends what nobody watches.
COLLECTIVE_SECONDS = 1800.0


def serve_store(assign: Assign, line: Line) -> TCPStore:
    """Opens this generation's store on the address that the rank was given, and nowhere else, and tells its port."""
    with socket.socket(socket.AF_INET6 if ":" in assign.bind else socket.AF_INET) as listening:
        listening.bind((assign.bind, 0))
        listening.listen(max(128, assign.world))
        port = listening.getsockname()[1]
        store = TCPStore(
            assign.bind,
            port,
            is_master=True,
            wait_for_workers=False,
            master_listen_fd=listening.detach(),
            timeout=timedelta(seconds=STORE_SECONDS),
        )
    line.send(StoreServing(assign.generation, port))
    return store


def form(assign: Assign, where: Rendezvous, store: TCPStore | None, aborted: threading.Event) -> None:
    """Joins the generation's default process group. Raises RuntimeError when a peer does not come or the generation ended."""
    if store is None:
        store = _connect(where, aborted)
    ours = PrefixStore(f"generation-{assign.generation}", store)
    # All are here before the first connection is made: a wait on the store ends with its socket, one inside gloo would not.
    if ours.add("arrived", 1) == assign.world:
        ours.set("complete", "")
    ours.wait(["complete"])
    dist.init_process_group(
        BACKEND,
        store=ours,
        rank=assign.rank,
        world_size=assign.world,
        timeout=timedelta(seconds=COLLECTIVE_SECONDS),
    )


def _connect(where: Rendezvous, aborted: threading.Event) -> TCPStore:
    """A client of the generation's store. Its constructor tries again and again where the server is frozen, whatever happens to
    its sockets: it has a thread of its own, which is left to its time-out when the generation ends."""
    made: queue.SimpleQueue[TCPStore | RuntimeError] = queue.SimpleQueue()

    def connect() -> None:
        try:
            made.put(TCPStore(where.address, where.port, is_master=False, timeout=timedelta(seconds=STORE_SECONDS)))
        except RuntimeError as error:
            made.put(error)

    threading.Thread(target=connect, name="store", daemon=True).start()
    while not aborted.is_set():
        try:
            store = made.get(timeout=0.05)
        except queue.Empty:
            continue
        if isinstance(store, RuntimeError):
            raise store
        return store
    raise RuntimeError("the generation ended before its store answered")


def leave(probe: Probe) -> None:
    """Drops every group. The caller has let go of model and mesh, and shut the sockets down: nothing here waits then."""
    probe.let_go()
    if dist.is_initialized():
        dist.destroy_process_group()
    # Groups are named by counting. A generation that broke while it formed leaves its count behind, and ranks that count
    # differently wait for each other under different names.
    dist.distributed_c10d._world.group_count = 0
    _forget_meshes()
    gc.collect()  # models and meshes refer to themselves and would hold their groups' sockets open


def _forget_meshes() -> None:
    """Empties DTensor's caches. They compare meshes by their ranks alone, and would hand out the mesh of the generation before:
    with the place that this process had there, and with its groups. Checkpoints are then written under another rank's offsets.
    """
    from torch.distributed.tensor import _collective_utils, _redistribute, debug

    debug._clear_sharding_prop_cache()
    _redistribute._gen_transform_infos.cache_clear()
    _collective_utils.MeshTopoInfo.build_from_mesh.cache_clear()
    if hasattr(_redistribute, "clear_redistribute_planner_cache"):  # since torch 2.12
        _redistribute.clear_redistribute_planner_cache()
