"""An ended generation's sockets are cut until the main thread is out; the next generation's are not."""

from __future__ import annotations

import threading
import time

from ninthsky.guard.probe.messages import Abort
from ninthsky.train.rank.elastic import Release


class Sockets:
    """Counts its cuts, each of which takes until `go`."""

    def __init__(self) -> None:
        self.cuts, self.began, self.go = 0, threading.Event(), threading.Event()

    def mark(self) -> None:
        pass

    def abort(self) -> int:
        self.cuts += 1
        self.began.set()
        assert self.go.wait(30.0)
        return 0


def test_a_cut_that_is_under_way_when_the_next_generation_begins_ends_first_and_is_the_last() -> None:
    release = Release()
    sockets = release.sockets = Sockets()  # type: ignore[assignment]
    release.begin()
    aborting = threading.Thread(target=release.on_abort, args=(Abort(1, ""),))
    aborting.start()
    assert sockets.began.wait(30.0) and release.aborted.is_set()
    release.out()  # the main thread is free, and its next place is there already
    beginning = threading.Thread(target=release.begin)
    beginning.start()
    beginning.join(0.1)
    assert beginning.is_alive(), "what it opens now would be cut as the old one's"
    sockets.go.set()
    beginning.join(30.0)
    aborting.join(30.0)
    time.sleep(0.3)  # three turns of the thread that insists
    assert sockets.cuts == 1 and not release.aborted.is_set()


def test_a_cut_is_repeated_until_the_main_thread_is_out() -> None:
    release = Release()
    sockets = release.sockets = Sockets()  # type: ignore[assignment]
    sockets.go.set()
    release.begin()
    release.on_abort(Abort(1, ""))
    deadline = time.monotonic() + 30.0
    while sockets.cuts < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    release.out()
    release.begin()
    cuts = sockets.cuts
    time.sleep(0.3)
    assert sockets.cuts == cuts
    release.on_abort(Abort(2, ""))
    assert sockets.cuts > cuts
    release.out()
