"""A rank's process, from its start to its exit: `python -m ninthsky.train.rank.elastic JOB.json`, started by an agent.

It connects and beats its heart before it imports torch, so that a machine that is slow to load is not taken for a dead one.
What it then does is in life/; docs/architecture.md ("Guard: who talks to whom") has the whole exchange.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import sys
import threading
import time
import traceback
from pathlib import Path

from ninthsky.guard.probe.line import Line
from ninthsky.guard.probe.messages import Abort, Hello
from ninthsky.guard.probe.record import BEAT_SECONDS, RecordWriter
from ninthsky.guard.probe.sockets import GenerationSockets

STUCK_STATUS = 5  # exit status of a rank whose main thread could not be freed
STUCK_SECONDS = 30.0


class Release:
    """Frees the main thread when a generation ends, by cutting its sockets until the main thread says that it is out."""

    def __init__(self) -> None:
        self.sockets = GenerationSockets()
        self.aborted = threading.Event()
        self._out = threading.Event()  # of one generation: who waits for an older one's end does not wait for this one's
        self._cutting = threading.Lock()

    def begin(self) -> None:
        """The main thread enters a generation; a cut under way ends first: it would take new sockets for the old one's."""
        with self._cutting:
            self.aborted.clear()
            self._out = threading.Event()
            self.sockets.mark()

    def out(self) -> None:
        """The main thread holds no group any more."""
        self._out.set()

    def on_abort(self, _: Abort) -> None:
        """Runs in the line's reader thread."""
        out = self._out
        if out.is_set():
            return
        self.aborted.set()
        self._cut(out)
        threading.Thread(target=self._insist, args=(out,), name="release", daemon=True).start()

    def _cut(self, out: threading.Event) -> None:
        with self._cutting:
            if not out.is_set():
                self.sockets.abort()

    def _insist(self, out: threading.Event) -> None:
        # A group that was still forming opens new connections after the first cut.
        end = time.monotonic() + STUCK_SECONDS
        while not out.wait(0.1):
            self._cut(out)
            if time.monotonic() > end:
                faulthandler.dump_traceback(sys.stderr)  # where it hangs; the agent sends the end of this log with the exit
                print("the main thread could not be freed: this process gives its card slot up", file=sys.stderr, flush=True)
                os._exit(STUCK_STATUS)


def _beat(record: RecordWriter) -> None:
    while True:
        record.heartbeat()
        time.sleep(BEAT_SECONDS)


def main() -> int:
    """Returns the exit status."""
    gc.disable()  # while modules are loaded there is nothing to collect: a quarter of that time; Rank switches it on again
    record = RecordWriter(Path(os.environ["N9_RECORD"]))
    release = Release()
    release.out()
    line = Line(os.environ["N9_AGENT"], release.on_abort)
    line.send(Hello(int(os.environ["N9_SLOT"]), os.getpid()))
    threading.Thread(target=_beat, args=(record,), name="heartbeat", daemon=True).start()

    from ninthsky.train.job import load_job
    from ninthsky.train.rank.life.rank import Rank

    rank = Rank(load_job(Path(sys.argv[1])), line, record, release, Path(os.environ["N9_SHARDS"]), os.environ["N9_HOST"])
    return rank.live()


if __name__ == "__main__":
    try:
        status = main()
    except BaseException:
        traceback.print_exc()  # the agent sends the end of this log with the exit
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Without the interpreter's own end: gloo's threads may still wait for peers that are gone.
    os._exit(status)
