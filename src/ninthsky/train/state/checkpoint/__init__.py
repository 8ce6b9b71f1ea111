"""Checkpoints that any mesh can load: torch DCP, written beside the training, checked on the way out and on the way in.

seal.py       what makes a folder a good checkpoint (no torch)
writing.py    what one rank writes, and its receipt
saver.py      when: a copy, a thread, one rename
metadata.py   DCP's files read without trusting its pickle
restoring.py  the newest good one, into any mesh
records.py    what was not kept or not loaded, for `n9 why`
"""

from ninthsky.train.state.checkpoint.restoring import Restored, load_weights, restore
from ninthsky.train.state.checkpoint.saver import Saved, Saver, save
from ninthsky.train.state.checkpoint.seal import FORMAT, SEAL, check, checkpoints, newest_good, set_aside

__all__ = [
    "FORMAT",
    "SEAL",
    "Restored",
    "Saved",
    "Saver",
    "check",
    "checkpoints",
    "load_weights",
    "newest_good",
    "restore",
    "save",
    "set_aside",
]
