"""Hooks into torch as a script imports it: groups, optimizer steps, data loading. Imports torch nowhere by itself.

A module of torch is hooked right after its own code has run (or at once where it is loaded already). Nothing happens before
the script forms a process group, or, where it is alone, steps an optimizer.
"""

from __future__ import annotations

import functools
import importlib.machinery
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ninthsky.guard.foreign.watcher import Watcher


def install() -> None:
    """Once in a process; `n9 guard run` does it before the script begins."""
    waiting = {}
    for name, hook in _HOOKS.items():
        module = sys.modules.get(name)
        if module is None:
            waiting[name] = hook
        else:
            hook(module)
    if waiting:
        sys.meta_path.insert(0, _Finder(waiting))


class _Finder:
    """Finds the modules that wait for a hook as they would be found anyway, and runs the hook after their code."""

    def __init__(self, waiting: dict[str, Callable[[ModuleType], None]]) -> None:
        self._waiting = waiting

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        hook = self._waiting.pop(name, None)
        if hook is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_and_hook(module: ModuleType) -> None:
            run(module)
            hook(module)

        spec.loader.exec_module = run_and_hook  # type: ignore[method-assign]
        return spec


def _hook_groups(c10d: Any) -> None:
    """Every group that torch forms, whatever its back end and options, is wrapped after it was formed."""
    form = c10d._new_process_group_helper

    @functools.wraps(form)
    def form_and_wrap(*arguments: Any, **options: Any) -> Any:
        group, *rest = form(*arguments, **options)
        if group is c10d.GroupMember.NON_GROUP_MEMBER:
            return group, *rest
        return _wrapped(c10d, group), *rest

    c10d._new_process_group_helper = form_and_wrap


def _wrapped(c10d: Any, group: Any) -> Any:
    if type(group).__name__ == "AdoptedGroup":
        return group  # torch gave out one that it had formed before
    first = c10d.GroupMember.WORLD is None
    watcher = _watcher(group.rank(), group.size()) if first else _current()
    if watcher is not None:
        with _harmless(f"the group {group.group_name!r}"):
            from ninthsky.guard.foreign.adopted import replace

            return replace(c10d, group, watcher.probe)
    return group


def _hook_optimizers(optimizer: ModuleType) -> None:
    def before(which: Any, arguments: Any, options: Any) -> None:
        watcher = _current()
        if watcher is not None:
            with _harmless("its steps"):
                watcher.before_step(which, _scaled)

    def after(which: Any, arguments: Any, options: Any) -> None:
        watcher = _current() or _alone()
        if watcher is not None:
            with _harmless("its steps"):
                watcher.after_step(which)

    optimizer.register_optimizer_step_pre_hook(before)
    optimizer.register_optimizer_step_post_hook(after)


def _hook_loader(loader: ModuleType) -> None:
    fetch = loader._BaseDataLoaderIter.__next__

    @functools.wraps(fetch)
    def timed(self: Any) -> Any:
        watcher = _current()
        if watcher is None:
            return fetch(self)
        with watcher.loading():
            return fetch(self)

    loader._BaseDataLoaderIter.__next__ = timed


def _hook_scaler(scaler: ModuleType) -> None:
    """Where losses are scaled, a gradient that overflows is a part of the method, not a fault."""
    begin = scaler.GradScaler.__init__

    @functools.wraps(begin)
    def noted(self: Any, *arguments: Any, **options: Any) -> None:
        global _scaled
        begin(self, *arguments, **options)
        _scaled = _scaled or self.is_enabled()

    scaler.GradScaler.__init__ = noted


def _hook_rendezvous(rendezvous: Any) -> None:
    """torchrun gives a restarted rank the store of the attempt before, with the dead ranks' addresses in it."""
    create = rendezvous._create_c10d_store

    @functools.wraps(create)
    def fresh(*arguments: Any, **options: Any) -> Any:
        store = create(*arguments, **options)
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        if attempt == "0":
            return store
        from torch._C._distributed_c10d import PrefixStore

        return PrefixStore(f"n9-attempt-{attempt}", store)

    rendezvous._create_c10d_store = fresh


_HOOKS: dict[str, Callable[[ModuleType], None]] = {
    "torch.distributed.distributed_c10d": _hook_groups,
    "torch.distributed.rendezvous": _hook_rendezvous,
    "torch.optim.optimizer": _hook_optimizers,
    "torch.utils.data.dataloader": _hook_loader,
    "torch.amp.grad_scaler": _hook_scaler,
}

_one: Watcher | None = None
_refused = False
_scaled = False
_told: set[str] = set()


def _current() -> Watcher | None:
    """This process's watcher; none in a child that was forked from a rank (a data loader's worker)."""
    return _one if _one is not None and _one.pid == os.getpid() else None


def _alone() -> Watcher | None:
    """A script of one process may form no group at all: its first optimizer step tells of it."""
    if os.environ.get("WORLD_SIZE", "1") != "1" or (_one is not None and _one.pid != os.getpid()):
        return None
    return _watcher(0, 1)


def _watcher(rank: int, world: int) -> Watcher | None:
    """Makes it once. None, after one line that says why, where this process cannot be watched."""
    global _one, _refused
    if _one is None and not _refused:
        _refused = True  # unless it succeeds
        with _harmless(f"rank {rank}"):
            from ninthsky.guard.foreign.watcher import Watcher

            _one = Watcher(rank, world)
            _refused = False
    elif _one is not None and _current() is not None:
        with _harmless(f"rank {rank}"):
            _one.joined(rank, world)
    return _current()


@contextmanager
def _harmless(what: str) -> Iterator[None]:
    """Whatever goes wrong with the watching, it is told once, and the script goes on as if nobody watched."""
    try:
        yield
    except Exception as error:
        if what not in _told:
            _told.add(what)
            _say(f"{what} cannot be watched from within ({type(error).__name__}: {error}); n9 guard watch sees it from outside")


def _say(text: str) -> None:
    print(f"n9: {text}", file=sys.stderr, flush=True)
