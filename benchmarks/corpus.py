"""The corpus itself: one small model, the same number of tokens, on raw text, on datatrove's corpus and on ours.

    python -m benchmarks.corpus [PAGES.parquet] [--seeds 3] [--passes 2]

The pool is the open pages on which our extraction was not fitted; bits per byte are asked of the hand-cleaned text of the
other pages, which no model reads. Raw is all the text of a page. datatrove's corpus is what its published pipelines make of
the pool, FineWeb's for English and FineWeb-2's `cmn_Hani` for Chinese, near duplicates included; languages are told to it
instead of detected, since its detectors are downloads. Ours is `n9 run --only data` with its defaults, but nothing is masked.
One tokenizer serves all three, trained on the raw text. A model reads `passes` times as many tokens as the smallest corpus
of its language has, so larger corpora are gone through less often: an advantage of raw text that is left to it.
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
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from resiliparse.extract.html2text import extract_plain_text
from tokenizers import Tokenizer

from benchmarks.pages import DEFAULT, pages_file
from benchmarks.peers import interpreter
from benchmarks.report import publish
from ninthsky.data.blocks import decode
from ninthsky.data.encode import EOS
from ninthsky.data.fit import fitted_on
from ninthsky.data.tokens import train_tokenizer
from ninthsky.model import Decoder, Shape
from ninthsky.train.step.loop import Gate, Recipe, Trainer
from ninthsky.train.step.loss import next_token_loss
from ninthsky.train.text.baseline import model_nats

PEER = ("datatrove[processing]==0.10.1", "lxml_html_clean", "spacy>=3.8,<4", "jieba", "orjson", "xxhash")
CORPORA = ("ours", "datatrove", "raw")
LANGUAGES = ("en", "zh")
SHAPE = Shape(1024, 4, 128, 4, 2, 8, 2, 128, dense_layers=1, dense_dim=384)
RECIPE = Recipe(lr=1e-2, weight_decay=0.1, warmup=0.05, decay=0.4, final=0.02, optimizer="muon", precision="bf16")
SEQUENCE, BATCH = 256, 8
ASKED = 1024  # tokens of each held-out page, from its beginning
# Runs in the peer's environment: folder of input, folder of output. The settings are those of fineweb.py in datatrove's
# examples and of fineweb-2-pipeline.py with configs/cmn_Hani.yml in huggingface/fineweb-2.
_PIPELINE = """
import sys
from datatrove.executor import LocalPipelineExecutor as Local
from datatrove.pipeline.dedup import MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
from datatrove.pipeline.extractors import Trafilatura
from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers.jsonl import JsonlWriter
from datatrove.utils.hashing import HashConfig

given, out = sys.argv[1:]
STOP_WORDS = "的 年 在 月 是 和 日 了 於 · 為 有 被 人 中 为 他 與 後 也 而 由".split()
FILTERS = {
    "en": ("eng_Latn", [
        GopherRepetitionFilter(), GopherQualityFilter(), C4QualityFilter(filter_no_terminal_punct=False),
        FineWebQualityFilter(),
    ]),
    "zh": ("cmn_Hani", [
        GopherRepetitionFilter(
            language="cmn_Hani", dup_para_frac=0, dup_line_char_frac=0, dup_para_char_frac=0, dup_line_frac=0.287,
            top_n_grams=[[2, 0.256], [3, 0.201], [4, 0.171]],
            dup_n_grams=[[5, 0.198], [6, 0.182], [7, 0.167], [8, 0.154], [9, 0.14], [10, 0.127]],
        ),
        FineWebQualityFilter(
            language="cmn_Hani", short_line_thr=999, char_duplicates_ratio=0.1, line_punct_thr=0.106, new_line_ratio=0.178,
        ),
        GopherQualityFilter(
            language="cmn_Hani", max_avg_word_length=5, min_avg_word_length=1, stop_words=STOP_WORDS,
            max_non_alpha_words_ratio=0.735, min_stop_words=2,
        ),
    ]),
}
config = MinhashConfig(hash_config=HashConfig(hash_fc="xxhash", precision=64), num_buckets=14, hashes_per_bucket=8, n_grams=5)
for language, (name, filters) in FILTERS.items():
    home = f"{out}/{language}"

    def step(label, *parts, tasks=1):
        Local(list(parts), tasks=tasks, workers=1, logging_dir=f"{home}/logs/{label}").run()

    extract = Trafilatura(favour_precision=True, timeout=20)
    read = JsonlReader(f"{home}/one", compression=None)
    clean = filters if language == "en" else []
    late = filters if language != "en" else []
    write = lambda folder: JsonlWriter(f"{home}/{folder}", output_filename="${rank}.jsonl", compression=None)
    step("extract", JsonlReader(f"{given}/{language}", text_key="html", compression=None), extract, *clean, write("one"))
    step("signatures", read, MinhashDedupSignature(output_folder=f"{home}/signatures", config=config, language=name))
    step("buckets", MinhashDedupBuckets(f"{home}/signatures", f"{home}/buckets", config=config), tasks=14)
    step("cluster", MinhashDedupCluster(f"{home}/buckets", f"{home}/remove", config=config))
    step("filter", read, MinhashDedupFilter(f"{home}/remove"), *late, write("kept"))
"""


def datatrove(rows: list[dict[str, Any]], folder: Path) -> dict[str, list[str]]:
    """Language -> texts that its pipelines keep."""
    for language in LANGUAGES:
        (folder / "given" / language).mkdir(parents=True)
        with (folder / "given" / language / "00000.jsonl").open("w") as file:
            for row in rows:
                if row["language"] == language:
                    file.write(json.dumps({"id": row["id"], "html": decode(row["html"])[0]}) + "\n")
    python = interpreter("bench-corpus", *PEER)
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    subprocess.run([python, "-c", _PIPELINE, folder / "given", folder / "out"], check=True, env=environment)
    return {
        language: [
            json.loads(line)["text"]
            for path in sorted((folder / "out" / language / "kept").glob("*.jsonl"))
            for line in path.read_text().splitlines()
        ]
        for language in LANGUAGES
    }


def ours(rows: list[dict[str, Any]], folder: Path) -> dict[str, list[str]]:
    """Language -> texts that the data stages keep with their defaults."""
    pq.write_table(pa.table({key: [row[key] for row in rows] for key in ("id", "html")}), folder / "pool.parquet")
    settings = folder / "run.toml"
    settings.write_text(
        f'name = "pool"\nsize = "tiny"\n[data]\nsources = ["{folder / "pool.parquet"}"]\nmax_pages = {len(rows)}\nmask = []\n'
    )
    command = [sys.executable, "-m", "ninthsky", "run", str(settings), "--store", str(folder), "--only", "data"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    kept: dict[str, list[str]] = {language: [] for language in LANGUAGES}
    for path in sorted((folder / "pool" / "stages" / "data.corpus" / "documents").glob("*.parquet")):
        for document in pq.read_table(path, columns=["language", "text"]).to_pylist():
            kept[document["language"]].append(document["text"])
    return kept


def raw(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Language -> all the text of each page."""
    return {
        language: [extract_plain_text(decode(row["html"])[0]) for row in rows if row["language"] == language]
        for language in LANGUAGES
    }


def encode(tokenizer: Tokenizer, texts: list[str], seed: int) -> NDArray[np.int64]:
    """All texts in an order of their own, each ended by EOS."""
    order = np.random.default_rng(seed).permutation(len(texts))
    runs = tokenizer.encode_batch([texts[at] for at in order], add_special_tokens=False)
    return np.concatenate([np.array([*run.ids, EOS], dtype=np.int64) for run in runs])


def bits_per_byte(tokenizer: Path, texts: list[str], asked: list[str], tokens: int, seed: int) -> float:
    """Trains one model on `texts` over and over until it read so many tokens, and scores it on `asked`; one thread."""
    torch.set_num_threads(1)
    encoder = Tokenizer.from_file(str(tokenizer))
    steps = max(tokens // (BATCH * SEQUENCE), 1)
    trainer = Trainer(Decoder(SHAPE, seed=seed), next_token_loss, RECIPE, steps, None)
    stream, passes = encode(encoder, texts, seed), 0
    for _ in range(steps):
        while len(stream) < BATCH * (SEQUENCE + 1):
            passes += 1
            stream = np.concatenate([stream, encode(encoder, texts, seed + 1000 * passes)])
        batch, stream = stream[: BATCH * (SEQUENCE + 1)], stream[BATCH * (SEQUENCE + 1) :]
        trainer.local_gradients(torch.from_numpy(batch.reshape(BATCH, SEQUENCE + 1)))
        trainer.apply(Gate.total(trainer.gather(trainer.gate_values())))
    model = trainer.full_model()
    bits, size = 0.0, 0
    for text in asked:
        ids = [EOS, *encoder.encode(text, add_special_tokens=False).ids[:ASKED]]
        bits += float(model_nats(model, np.array(ids), SEQUENCE).sum()) / math.log(2)
        size += len(encoder.decode(ids[1:]).encode())
    return bits / size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="?", type=pages_file, default=str(DEFAULT))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--passes", type=float, default=2.0, help="over the smallest corpus of a language")
    given = parser.parse_args()
    rows = pq.read_table(given.pages).to_pylist()
    pool = [row for row in rows if not fitted_on(row["id"])]
    asked = {lang: [row["main_text"] for row in rows if fitted_on(row["id"]) and row["language"] == lang] for lang in LANGUAGES}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "ours").mkdir()
        corpora = {"raw": raw(pool), "ours": ours(pool, folder / "ours"), "datatrove": datatrove(pool, folder)}
        tokenizer = folder / "tokenizer.json"
        train_tokenizer([text for texts in corpora["raw"].values() for text in texts], SHAPE.vocab).save(str(tokenizer))
        encoder = Tokenizer.from_file(str(tokenizer))
        sizes = {(corpus, lang): len(encode(encoder, corpora[corpus][lang], 0)) for corpus in CORPORA for lang in LANGUAGES}
        read = {lang: int(given.passes * min(sizes[corpus, lang] for corpus in CORPORA)) for lang in LANGUAGES}
        print(json.dumps({"tokens": {" ".join(key): size for key, size in sizes.items()}, "read": read}), flush=True)
        jobs = [(corpus, lang, seed) for lang in LANGUAGES for corpus in CORPORA for seed in range(given.seeds)]
        with mp.get_context("spawn").Pool(os.cpu_count()) as workers:
            results = [
                workers.apply_async(bits_per_byte, (tokenizer, corpora[corpus][lang], asked[lang], read[lang], seed))
                for corpus, lang, seed in jobs
            ]
            found: dict[tuple[str, str], list[float]] = {}
            for (corpus, lang, seed), result in zip(jobs, results, strict=True):
                found.setdefault((corpus, lang), []).append(result.get())
                print(f"{lang}, {corpus}, seed {seed}: {found[corpus, lang][-1]:.4f} bits per byte", flush=True)
    tell(corpora, sizes, read, found)


def tell(
    corpora: dict[str, dict[str, list[str]]],
    sizes: dict[tuple[str, str], int],
    read: dict[str, int],
    found: dict[tuple[str, str], list[float]],
) -> None:
    """The table, and the keys `bpb_ours`, `bpb_datatrove`, `bpb_raw`: means over languages and seeds."""
    table: list[list[Any]] = []
    figures: dict[str, Any] = {}
    for lang in LANGUAGES:
        table.append([f"{lang}: documents", *(len(corpora[corpus][lang]) for corpus in CORPORA)])
        passes = [f"{sizes[corpus, lang]:,} ({read[lang] / sizes[corpus, lang]:.2f} passes)" for corpus in CORPORA]
        table.append([f"{lang}: tokens", *passes])
        values = {corpus: found[corpus, lang] for corpus in CORPORA}
        shown = [f"{np.mean(values[corpus]):.4f} ({min(values[corpus]):.4f}-{max(values[corpus]):.4f})" for corpus in CORPORA]
        table.append([f"{lang}: bits per byte, {read[lang]:,} tokens read", *shown])
        figures |= {f"bpb_{lang}_{corpus}": float(np.mean(values[corpus])) for corpus in CORPORA}
        # Same seed, same initial weights: seeds are compared in pairs.
        rivals = [min(values["datatrove"][seed], values["raw"][seed]) for seed in range(len(values["ours"]))]
        figures[f"bpb_{lang}_ours_lowest"] = sum(mine < other for mine, other in zip(values["ours"], rivals, strict=True))
    figures |= {f"bpb_{corpus}": float(np.mean([figures[f"bpb_{lang}_{corpus}"] for lang in LANGUAGES])) for corpus in CORPORA}
    publish("corpus", table, figures, columns=("what", *CORPORA))


if __name__ == "__main__":
    main()
