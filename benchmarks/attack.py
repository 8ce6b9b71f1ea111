"""Damages checkpoints at random, as disks, crashes and careless hands do, and asks what a restart would load.

`attack(folder, chance)` damages some of the checkpoints of a folder and says which. The newest that it left alone is the one
that has to be found; a damage that changes nothing (white space of a seal) counts as none.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from ninthsky.train.state import checkpoint

Damage = Callable[[Path, random.Random], None]


def attack(folder: Path, chance: random.Random) -> dict[str, str]:
    """Name of each damaged checkpoint -> what was done to it. Newer ones are hit oftener; the oldest never."""
    paths = checkpoint.checkpoints(folder)
    victims = [path for number, path in enumerate(paths[:-1]) if chance.random() < 1.0 / (1 + number)]
    done = {}
    for path in victims:
        before = _content(path)
        name = chance.choice(sorted(KINDS))
        KINDS[name](path, chance)
        if not path.exists() or _content(path) != before:
            done[path.name] = name
    return done


def _content(path: Path) -> dict[str, object]:
    found: dict[str, object] = {file.name: file.read_bytes() for file in path.iterdir()}
    try:
        found[checkpoint.SEAL] = json.loads((path / checkpoint.SEAL).read_bytes())
    except (OSError, ValueError):
        found.pop(checkpoint.SEAL, None)
    return found


def _any(path: Path, chance: random.Random) -> Path:
    return chance.choice(sorted(path.iterdir()))


def _cut(path: Path, chance: random.Random) -> None:
    file = _any(path, chance)
    raw = file.read_bytes()
    file.write_bytes(raw[: chance.randrange(len(raw))])


def _flip(path: Path, chance: random.Random) -> None:
    file = _any(path, chance)
    raw = bytearray(file.read_bytes())
    raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
    file.write_bytes(raw)


def _zero(path: Path, chance: random.Random) -> None:
    """A block of zeros, as a disk that never wrote it gives back."""
    file = _any(path, chance)
    raw = bytearray(file.read_bytes())
    start = chance.randrange(len(raw)) // 512 * 512
    raw[start : start + 512] = bytes(len(raw[start : start + 512]))
    file.write_bytes(raw)


def _longer(path: Path, chance: random.Random) -> None:
    with _any(path, chance).open("ab") as file:
        file.write(b"}")


def _delete(path: Path, chance: random.Random) -> None:
    _any(path, chance).unlink()


def _delete_all(path: Path, chance: random.Random) -> None:
    for file in path.iterdir():
        file.unlink()


def _lose(name: str) -> Damage:
    def lose(path: Path, chance: random.Random) -> None:
        (path / name).unlink()

    return lose


def _exchange_within(path: Path, chance: random.Random) -> None:
    first, second = chance.sample(sorted(path.iterdir()), 2)
    held = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(held)


def _from_another(path: Path, chance: random.Random) -> None:
    """A file of the same name from another checkpoint."""
    other = chance.choice([found for found in checkpoint.checkpoints(path.parent) if found != path])
    names = {file.name for file in path.iterdir()} & {file.name for file in other.iterdir()}
    if names:
        name = chance.choice(sorted(names))
        shutil.copyfile(other / name, path / name)


def _older_under_its_name(path: Path, chance: random.Random) -> None:
    """A whole and good checkpoint, but of another step."""
    other = checkpoint.checkpoints(path.parent)[-1]
    shutil.rmtree(path)
    shutil.copytree(other, path)


def _format(path: Path, chance: random.Random) -> None:
    seal = json.loads((path / checkpoint.SEAL).read_bytes())
    seal["format"] = chance.choice([0, 2, 99, "1", None])
    (path / checkpoint.SEAL).write_text(json.dumps(seal))


def _seal_agrees(path: Path, chance: random.Random) -> None:
    """The file and its entry in the seal changed together, by somebody who does not know of the seal's own checksum."""
    seal = json.loads((path / checkpoint.SEAL).read_bytes())
    name = chance.choice(sorted(seal["files"]))
    raw = (path / name).read_bytes()[:-1]
    (path / name).write_bytes(raw)
    seal["files"][name]["size"] = len(raw)
    (path / checkpoint.SEAL).write_text(json.dumps(seal))


KINDS: dict[str, Damage] = {
    "cut": _cut,
    "bit flipped": _flip,
    "block of zeros": _zero,
    "longer": _longer,
    "file deleted": _delete,
    "all files deleted": _delete_all,
    "seal deleted": _lose(checkpoint.SEAL),
    "metadata deleted": _lose(".metadata"),
    "folder deleted": lambda path, chance: shutil.rmtree(path),
    "files exchanged": _exchange_within,
    "file of another checkpoint": _from_another,
    "older one under its name": _older_under_its_name,
    "format altered": _format,
    "seal altered with its file": _seal_agrees,
}
