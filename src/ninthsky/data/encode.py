"""Texts to token ids, shard by shard of the corpus; from these, in any order of documents, token files of bounded size."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ninthsky.run import StageContext
from ninthsky.run.executor import Clock, executor

EOS = 1
_BATCH = 256  # documents encoded at a time
_FEW = 8  # shards that are done before a process for them has started


def encode_shard(shard: tuple[str, str, str, str], skip: dict[int, str], clock: Clock) -> int:
    """Map: (documents/N.parquet, tokenizer.json, target, dtype) to target.bin, ids of all documents each followed by `<eos>`,
    and target.npy, int64 [documents, 2]: tokens and bytes of text of each. Returns the number of documents."""
    source, tokenizer_file, target, dtype = shard
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core a shard
    tokenizer = Tokenizer.from_file(tokenizer_file)
    sizes: list[tuple[int, int]] = []
    draft = Path(f"{target}.{os.getpid()}")
    with draft.open("wb") as file:
        for batch in pq.ParquetFile(source).iter_batches(batch_size=_BATCH, columns=["text"]):
            texts: list[str] = batch.column(0).to_pylist()
            for text, encoded in zip(texts, tokenizer.encode_batch(texts, add_special_tokens=False), strict=True):
                file.write(np.array([*encoded.ids, EOS], dtype=dtype).tobytes())
                sizes.append((len(encoded.ids) + 1, len(text.encode())))
    draft.replace(f"{target}.bin")
    with draft.open("wb") as file:
        np.save(file, np.array(sizes, dtype=np.int64).reshape(-1, 2))
    draft.replace(f"{target}.npy")  # last: the shard counts as done from here
    return len(sizes)


def encode(ctx: StageContext, sources: Sequence[Path], tokenizer_file: Path, dtype: str, total: int) -> list[Path]:
    """All shards of a corpus; what an earlier start finished is not done again. Returns their targets, without suffix."""
    work = ctx.out / "work"
    work.mkdir(exist_ok=True)
    targets = [work.resolve() / source.stem for source in sources]
    missing = [
        (str(source.resolve()), str(tokenizer_file.resolve()), str(target), dtype)
        for source, target in zip(sources, targets, strict=True)
        if not Path(f"{target}.npy").exists()
    ]
    with ctx.progress("tokens", total=total, unit="documents") as bar:
        bar.advance(total - sum(pq.read_metadata(source).num_rows for source, *_ in missing))
        if len(missing) <= _FEW:
            for shard in missing:
                bar.advance(encode_shard(shard, {}, lambda index: None))
        else:
            for _, documents in executor(ctx.settings.where, 60.0).map(encode_shard, missing):
                bar.advance(documents)
    return targets


class Encoded:
    """Tokens of single documents, read from the shards as they are asked for. `sizes`: int64 [documents, 2], as above."""

    def __init__(self, targets: Sequence[Path], dtype: str) -> None:
        shards = [np.load(f"{target}.npy") for target in targets]
        self.sizes: NDArray[np.int64] = np.concatenate([np.empty((0, 2), np.int64), *shards])
        self._targets, self._width = targets, np.dtype(dtype).itemsize
        self._shard = np.repeat(np.arange(len(shards)), [len(shard) for shard in shards])
        starts = [np.cumsum(shard[:, 0]) - shard[:, 0] for shard in shards]
        self._start = np.concatenate([np.empty(0, np.int64), *starts])

    def __call__(self, document: int) -> bytes:
        with Path(f"{self._targets[self._shard[document]]}.bin").open("rb", buffering=0) as file:
            file.seek(int(self._start[document]) * self._width)
            wanted = int(self.sizes[document, 0]) * self._width
            data = file.read(wanted)
        if len(data) != wanted:
            raise OSError(f"{file.name} was cut")
        return data


def write_split(
    ctx: StageContext,
    split: str,
    order: Sequence[int],
    encoded: Encoded,
    shard_tokens: int,
    kind: Callable[[int], dict[str, str]],
) -> dict[str, Any]:
    """The documents of a split in `order`, as files of at most `shard_tokens` tokens (more where one document has more).

    Token number n of the split is in the file whose tokens, added to those of the files before it, first exceed n.
    """
    files: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    by_language: dict[str, int] = {}
    total, at = 0, 0
    lengths = [int(encoded.sizes[document, 0]) for document in order]
    while at < len(order) or not files:
        name, tokens, last = f"{split}.bin" if not files else f"{split}-{len(files):05d}.bin", 0, at
        while last < len(order) and (tokens == 0 or tokens + lengths[last] <= shard_tokens):
            tokens, last = tokens + lengths[last], last + 1
        with ctx.open(f"tokens/{name}", rows=last - at) as file:
            for document in order[at:last]:
                file.write(encoded(document))
        files.append({"file": name, "tokens": tokens, "documents": last - at})
        at = last
    for document, length in zip(order, lengths, strict=True):
        what = kind(document)
        if not parts or any(parts[-1][key] != value for key, value in what.items()):
            parts.append({**what, "start": total, "tokens": 0, "documents": 0, "bytes": 0})
        parts[-1]["tokens"] += length
        parts[-1]["documents"] += 1
        parts[-1]["bytes"] += int(encoded.sizes[document, 1])
        by_language[what["language"]] = by_language.get(what["language"], 0) + length
        total += length
    return {
        "file": files[0]["file"],
        "files": files,
        "tokens": total,
        "documents": len(order),
        "bytes": sum(part["bytes"] for part in parts),
        "by_language": dict(sorted(by_language.items())),
        "parts": parts,
    }
