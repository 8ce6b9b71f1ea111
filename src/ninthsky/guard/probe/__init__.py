"""What runs inside a rank: its record in shared memory, its line to the agent, the group that counts collectives."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from pathlib import Path


def watch(job: str | os.PathLike[str]) -> bool:
    """For a script that `n9 guard run` did not start: the guard that waits with `--job JOB` watches it from here on.

    To be called before the script forms a process group. False, after one line that says why, where no guard is there.
    """
    path = Path(job) / f"ranks-{host_here()}.json"
    try:
        folder = json.loads(path.read_text("utf-8"))["ranks"]
    except (OSError, ValueError, KeyError) as error:
        print(f"n9: not watched: {error}; start `n9 guard run --job {job}` on this host before", file=sys.stderr)
        return False
    from ninthsky.guard.foreign.hooks import install

    os.environ["N9_RANKS"] = folder
    install()
    return True


def host_here() -> str:
    """This host's name, as far as it may stand in a card's name."""
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname().split(".")[0])[:40] or "host"
