"""Stage `data.tokens`: a byte-level BPE trained on the corpus, and the corpus as token files addressed by position."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import xxhash
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from ninthsky.data.sources import group
from ninthsky.errors import UserError
from ninthsky.run import StageContext

SPECIAL = ("<pad>", "<eos>", "<user>", "<assistant>", "<signal>", "</signal>")
EOS = 1
_BATCH = 256  # documents encoded at a time


def train_tokenizer(texts: list[str], vocab: int) -> Tokenizer:
    """Byte-level BPE with the special tokens as ids 0-5. Raises ValueError when `vocab` has no room for the 256 bytes."""
    if vocab < 256 + len(SPECIAL):
        raise ValueError(f"a byte-level vocabulary has at least {256 + len(SPECIAL)} entries, not {vocab}")
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    return tokenizer


def held_out_groups(groups: list[str], languages: list[str], share: float, seed: int) -> set[str]:
    """Groups of aligned pages that are held out: in the order of a seeded hash, until `share` of each language's documents is.

    The translations of a page go together, so that no held-out page has its translation, or the untranslated paragraphs that
    zh-CN and zh-TW have in common with en, among the training text. At least one group stays for training.
    """
    members: dict[str, Counter[str]] = {}
    for name, language in zip(groups, languages, strict=True):
        members.setdefault(name, Counter())[language] += 1
    order = sorted(members, key=lambda name: (xxhash.xxh3_64_intdigest(name.encode(), seed=seed), name))
    missing = Counter({language: math.ceil(share * count) for language, count in Counter(languages).items()})
    chosen: set[str] = set()
    for name in order:
        if len(chosen) < len(order) - 1 and any(missing[language] > 0 for language in members[name]):
            chosen.add(name)
            missing.subtract(members[name])
    return chosen


def run(ctx: StageContext) -> None:
    """Writes tokenizer.json, train.bin, held_out.bin, index.json under tokens/. Raises UserError N9-DATA-002."""
    settings = ctx.settings
    vocab = settings.data.vocab or 1_024
    documents: list[dict[str, Any]] = []
    for path in sorted((ctx.inputs["data.corpus"] / "documents").glob("*.parquet")):
        documents += pq.read_table(path, columns=["id", "source", "path", "language", "text"]).to_pylist()
    groups = [group(document["source"], document["path"]) for document in documents]
    if len(set(groups)) < 2:
        raise UserError(
            "N9-DATA-002",
            f"the corpus has {len(documents)} documents, too few to hold any out",
            str(ctx.inputs["data.corpus"] / "funnel.json"),
            "the funnel tells where pages were dropped; name more [data] sources or loosen [data.quality]",
        )
    out = held_out_groups(groups, [d["language"] for d in documents], settings.data.held_out, settings.seed)
    # Documents of one source and language stand together, in a seeded order: a part that a mixture can weigh by itself.
    order = sorted(
        range(len(documents)),
        key=lambda i: (
            documents[i]["source"],
            documents[i]["language"],
            xxhash.xxh3_64_intdigest(documents[i]["id"].encode(), seed=settings.seed),
        ),
    )
    splits = {
        "train": [documents[i] for i in order if groups[i] not in out],
        "held_out": [documents[i] for i in order if groups[i] in out],
    }
    ctx.say(f"training a byte-level BPE of {vocab} entries on {len(splits['train'])} documents")
    try:
        tokenizer = train_tokenizer([document["text"] for document in splits["train"]], vocab)
    except ValueError as error:
        raise UserError("N9-DATA-002", str(error), "[data] vocab", f"set it to {256 + len(SPECIAL)} or more") from error
    with ctx.open("tokens/tokenizer.json") as file:
        file.write(tokenizer.to_str(pretty=True).encode())
    width = "uint16" if tokenizer.get_vocab_size() <= 1 << 16 else "uint32"
    index: dict[str, Any] = {"format": 1, "dtype": width, "vocab": tokenizer.get_vocab_size(), "eos": EOS, "splits": {}}
    size, tokens = 0, 0
    with ctx.progress("tokens", total=len(documents), unit="documents") as bar:
        for split, chosen in splits.items():
            entry = _write(ctx, tokenizer, split, chosen, width, bar)
            index["splits"][split] = entry
            size += entry["bytes"]
            tokens += entry["tokens"] - entry["documents"]
    index["bytes_per_token"] = round(size / max(tokens, 1), 4)
    with ctx.open("tokens/index.json") as file:
        file.write(json.dumps(index, indent=1, sort_keys=True).encode() + b"\n")
    train, held = index["splits"]["train"], index["splits"]["held_out"]
    ctx.summary(
        vocab=index["vocab"],
        train_tokens=train["tokens"],
        held_out_tokens=held["tokens"],
        bytes_per_token=index["bytes_per_token"],
    )
    languages = sorted({*train["by_language"], *held["by_language"]})
    ctx.table(
        "tokens",
        f"Tokens: vocabulary {index['vocab']}, {index['bytes_per_token']} bytes per token",
        ["language", "training", "held out"],
        [[name, train["by_language"].get(name, 0), held["by_language"].get(name, 0)] for name in languages],
        note="Translations of one page are held out together.",
    )


def _write(
    ctx: StageContext, tokenizer: Tokenizer, split: str, documents: list[dict[str, Any]], width: str, bar: Any
) -> dict[str, Any]:
    """One split as one file of token ids, little-endian, each document followed by `<eos>`; `parts` say what stands where."""
    name, total = f"{split}.bin", 0
    by_language: Counter[str] = Counter()
    parts: list[dict[str, Any]] = []
    with ctx.open(f"tokens/{name}", rows=len(documents)) as file:
        for start in range(0, len(documents), _BATCH):
            batch = documents[start : start + _BATCH]
            for document, encoded in zip(
                batch, tokenizer.encode_batch([d["text"] for d in batch], add_special_tokens=False), strict=True
            ):
                ids = np.array([*encoded.ids, EOS], dtype=f"<u{np.dtype(width).itemsize}")
                file.write(ids.tobytes())
                by_language[document["language"]] += len(ids)
                kind = {"source": document["source"], "language": document["language"]}
                if not parts or any(parts[-1][key] != value for key, value in kind.items()):
                    parts.append({**kind, "start": total, "tokens": 0, "documents": 0, "bytes": 0})
                parts[-1]["tokens"] += len(ids)
                parts[-1]["documents"] += 1
                parts[-1]["bytes"] += len(document["text"].encode())
                total += len(ids)
            bar.advance(len(batch))
    return {
        "file": name,
        "tokens": total,
        "documents": len(documents),
        "bytes": sum(part["bytes"] for part in parts),
        "by_language": dict(sorted(by_language.items())),
        "parts": parts,
    }
