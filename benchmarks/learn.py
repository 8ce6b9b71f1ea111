"""`python -m benchmarks.learn`: twenty minutes of training on the demo's corpus, held against Kneser-Ney on the same tokens.

    python -m benchmarks.learn [--seconds 1200]            the run that is reported
    python -m benchmarks.learn --validate --seconds 120    how the recipe was chosen: held-out text is not read

The corpus is what the stages make at size `tiny`. A twentieth of the training text (whole groups of translations) is kept back
from the model to choose by; Kneser-Ney has all of it. Speed is measured first, with two ranks and with one rank of two threads;
the faster one trains a number of steps that is fixed before the first. Recipe and training: learn_rank.py.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import math
import multiprocessing as mp
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer

from benchmarks.learn_rank import BATCH, CHECKS, SEED, SEQUENCE, SHAPE, train
from benchmarks.report import publish
from ninthsky.data.encode import EOS
from ninthsky.data.sources import group
from ninthsky.data.tokens import held_out_groups
from ninthsky.model.files import load
from ninthsky.run.folder import write_json
from ninthsky.train.text.cursor import TokenFile
from ninthsky.train.text.evaluate import KNESER_NEY, Evaluation, evaluate
from ninthsky.train.text.ngram import KneserNey

BYTE_ORDER = 8  # of the Kneser-Ney model over bytes, which knows of no tokens
VALIDATION = 0.05


def make_corpus(folder: Path) -> Path:
    """Pages to tokens through the stages at size tiny -> the run's folder `stages`."""
    settings = folder / "run.toml"
    settings.write_text(f'name = "learn"\nsize = "tiny"\nseed = {SEED}\n')
    subprocess.run(
        [sys.executable, "-m", "ninthsky", "run", str(settings), "--store", str(folder), "--only", "data"], check=True
    )
    return folder / "learn" / "stages"


def keep_back(stages: Path, out: Path) -> Path:
    """A token folder of the training text alone, whose `held_out` is a part of it: groups of translations stay together."""
    documents: list[dict[str, Any]] = []
    for path in sorted((stages / "data.corpus" / "documents").glob("*.parquet")):
        documents += pq.read_table(path, columns=["source", "path", "language", "text"]).to_pylist()

    def groups(some: list[dict[str, Any]], seed: int) -> set[str]:
        names = [group(document["source"], document["path"]) for document in some]
        return held_out_groups(names, [document["language"] for document in some], VALIDATION, seed)

    outside = groups(documents, SEED)
    documents = [d for d in documents if group(d["source"], d["path"]) not in outside]
    kept = groups(documents, SEED + 1000)
    documents.sort(key=lambda d: (d["source"], d["language"], d["path"]))
    out.mkdir()
    (out / "tokenizer.json").write_bytes((stages / "data.tokens" / "tokens" / "tokenizer.json").read_bytes())
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    splits = {}
    for split in ("train", "held_out"):
        parts: list[dict[str, Any]] = []
        ids: list[int] = []
        for d in documents:
            if (group(d["source"], d["path"]) in kept) != (split == "held_out"):
                continue
            kind = {"source": d["source"], "language": d["language"]}
            if not parts or {key: parts[-1][key] for key in kind} != kind:
                parts.append({**kind, "start": len(ids), "tokens": 0, "documents": 0, "bytes": 0})
            ids += [*tokenizer.encode(d["text"], add_special_tokens=False).ids, EOS]
            parts[-1]["tokens"] = len(ids) - parts[-1]["start"]
            parts[-1]["documents"] += 1
            parts[-1]["bytes"] += len(d["text"].encode())
        np.array(ids, dtype="<u2").tofile(out / f"{split}.bin")
        splits[split] = {"file": f"{split}.bin", "tokens": len(ids), "parts": parts, "bytes": sum(p["bytes"] for p in parts)}
    write_json(out / "index.json", {"format": 1, "dtype": "uint16", "vocab": SHAPE.vocab, "eos": EOS, "splits": splits})
    return out


def on_ranks(ranks: int, threads: int, tokens: Path, steps: int, out: Path) -> dict[str, Any]:
    """`train` on so many processes; what rank 0 said."""
    context = mp.get_context("spawn")
    hear, say = context.Pipe(duplex=False)
    out.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # before a child imports torch
    processes = [context.Process(target=train, args=(rank, ranks, threads, tokens, steps, out, say)) for rank in range(ranks)]
    for process in processes:
        process.start()
    say.close()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit(f"ranks ended with {[process.exitcode for process in processes]}")
    said: dict[str, Any] = hear.recv()
    return said


def byte_model(tokens: Path) -> dict[str, float]:
    """Bits per byte by language of Kneser-Ney over bytes: a figure into which no tokenizer enters."""
    tokenizer = Tokenizer.from_file(str(tokens / "tokenizer.json"))
    runs = {}
    for split in ("train", "held_out"):
        file = TokenFile.open(tokens, split)
        ends = np.flatnonzero(file.tokens == EOS)
        texts = tokenizer.decode_batch([part.tolist() for part in np.split(file.tokens, ends + 1)[:-1]])
        begins = np.concatenate([[0], ends[:-1] + 1])
        language = np.concatenate([np.full(p["documents"], p["language"], dtype=object) for p in file.parts])
        assert len(begins) == len(texts) == len(language)
        runs[split] = [(name, np.append(np.frombuffer(text.encode(), np.uint8).astype(np.int64), 256))
                       for name, text in zip(language, texts, strict=True)]  # fmt: skip
    fitted = KneserNey.fit(np.concatenate([run for _, run in runs["train"]]), 257, BYTE_ORDER)
    bits: dict[str, float] = {}
    sizes: dict[str, int] = {}
    shares = fitted.probabilities(np.concatenate([run for _, run in runs["held_out"]]))
    at = 0
    for name, run in runs["held_out"]:
        bits[name] = bits.get(name, 0.0) - float(np.log2(shares[at : at + len(run)]).sum())
        sizes[name] = sizes.get(name, 0) + len(run) - 1
        at += len(run)
    return {name: value / sizes[name] for name, value in bits.items()}


def best_order(tokens: Path, orders: range = range(2, 10)) -> dict[str, tuple[int, float]]:
    """Language -> (order, bits per byte) of the token n-gram that does best on the very text that is reported."""
    train_file, held_out = (TokenFile.open(tokens, split) for split in ("train", "held_out"))
    found: dict[str, tuple[int, float]] = {}
    for order in orders:
        bits = -np.log2(KneserNey.fit(train_file.tokens, train_file.vocab, order).probabilities(held_out.tokens))
        for language in {part["language"] for part in held_out.parts}:
            own = [part for part in held_out.parts if part["language"] == language]
            value = sum(bits[p["start"] : p["start"] + p["tokens"]].sum() for p in own) / sum(p["bytes"] for p in own)
            found[language] = min(found.get(language, (0, math.inf)), (order, float(value)), key=lambda pair: pair[1])
    return found


def tell(found: Evaluation, tokens: Path, said: dict[str, Any], steps: int, way: str, seconds: float) -> None:
    rows: list[tuple[str, str, str]] = []
    figures: dict[str, Any] = {}
    over_bytes, best = byte_model(tokens), best_order(tokens)
    for row in found.languages:
        values = {scorer: row.bits_per_byte(scorer) or math.nan for scorer in found.scorers}
        order, value = best[row.name]
        rivals = ", ".join(f"{scorer} {values[scorer]:.3f}" for scorer in found.scorers[1:])
        rows.append((f"bits per byte, {row.name}", f"{values['model']:.3f}",
                     f"{rivals}, {order}-gram {value:.3f}, bytes {BYTE_ORDER}-gram {over_bytes[row.name]:.3f}"))  # fmt: skip
        figures[f"bits_{row.name}"], figures[f"kneser_ney_{row.name}"] = values["model"], values[KNESER_NEY]
        figures[f"over_kneser_ney_{row.name}"] = values["model"] / values[KNESER_NEY]
        figures[f"seen_{row.name}"] = row.seen
    rows.append(("held-out tokens seen in training, 13 in a row", f"{found.all.seen:.1%}", "of all held-out tokens"))
    passes = ", ".join(f"{name} {count:.1f} times over" for name, count in said["passes"].items())
    parameters = f"{SHAPE.parameters() / 1e6:.1f} M parameters, {SHAPE.active_parameters() / 1e6:.1f} M active"
    rows.append((parameters, f"{steps:,} steps of {BATCH * SEQUENCE:,} tokens", way))
    rows.append(("best on the text kept back", f"after step {said['taken_at']:,}", passes))
    rows.append(("seconds of training", f"{said['seconds']:.0f}", f"{seconds:.0f} asked, {said['cpu_seconds']:.0f} CPU"))
    below = all(figures[f"over_kneser_ney_{row.name}"] < 1 for row in found.languages)
    figures |= {"below_kneser_ney_in_all": float(below), "steps": steps, "taken_at": said["taken_at"]}
    figures |= {"seconds": said["seconds"], "cpu_seconds": said["cpu_seconds"]}
    publish("learn", rows, figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1200.0, help="of training, on the wall clock")
    parser.add_argument("--validate", action="store_true", help="score a part of the training text that is kept back")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stages = make_corpus(folder)
        tokens, kept = stages / "data.tokens" / "tokens", keep_back(stages, folder / "kept")
        ways = {"2 ranks": (2, 1), "2 threads": (1, 2)} if (os.cpu_count() or 1) > 1 else {"1 rank": (1, 1)}
        speed = {way: on_ranks(*size, kept, 0, folder / way) for way, size in ways.items()}
        way = min(speed, key=lambda way: speed[way]["step_seconds"])
        left = given.seconds - CHECKS * speed[way]["check_seconds"]
        steps = max(int(left / speed[way]["step_seconds"]), CHECKS)
        measured = {name: round(said["step_seconds"], 4) for name, said in speed.items()}
        print(json.dumps({"seconds_per_step": measured, "taken": way, "steps": steps}), flush=True)
        said = on_ranks(*ways[way], kept, steps, folder / "run")
        torch.set_num_threads(1)
        model = load(folder / "run" / "export")
        if given.validate:
            print("\n".join(evaluate(model, kept, SEQUENCE, SEQUENCE // 2).lines()))
        else:
            tell(evaluate(model, tokens, SEQUENCE, SEQUENCE // 2), tokens, said, steps, way, given.seconds)


if __name__ == "__main__":
    main()
