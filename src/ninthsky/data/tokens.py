"""Stage `data.tokens`: a byte-level BPE trained on the corpus, and the corpus as token files addressed by position."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from ninthsky.data.encode import EOS, Encoded, encode, write_split
from ninthsky.data.sources import group
from ninthsky.errors import UserError
from ninthsky.run import StageContext

SPECIAL = ("<pad>", "<eos>", "<user>", "<assistant>", "<signal>", "</signal>")
_BATCH = 256  # documents read at a time


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


@dataclass(frozen=True)
class Listing:
    """Documents of a corpus without their texts, in the order of its files."""

    id: list[str]
    source: list[str]
    path: list[str]
    language: list[str]
    characters: list[int]

    @classmethod
    def of(cls, sources: Sequence[Path]) -> Listing:
        """Reads all texts once, file by file, for their lengths."""
        found = cls([], [], [], [], [])
        for source in sources:
            for batch in pq.ParquetFile(source).iter_batches(columns=["id", "source", "path", "language", "text"]):
                for name, values in (
                    ("id", found.id),
                    ("source", found.source),
                    ("path", found.path),
                    ("language", found.language),
                ):
                    values += batch.column(name).to_pylist()
                found.characters.extend(pc.utf8_length(batch.column("text")).to_pylist())
        return found

    def order(self, seed: int) -> list[int]:
        """Documents of one source and language together, in a seeded order: a part that a mixture can weigh by itself."""
        return sorted(
            range(len(self.id)),
            key=lambda i: (self.source[i], self.language[i], xxhash.xxh3_64_intdigest(self.id[i].encode(), seed=seed)),
        )

    def sample(self, documents: Sequence[int], characters: int, seed: int) -> list[int]:
        """Documents in a seeded order until they have so many characters; all of them where they have fewer."""
        order = sorted(documents, key=lambda i: xxhash.xxh3_64_intdigest(self.id[i].encode(), seed=seed))
        ends = np.cumsum([self.characters[i] for i in order])
        return order[: int(np.searchsorted(ends, characters)) + 1]


def texts_at(sources: Sequence[Path], documents: Sequence[int]) -> list[str]:
    """Texts of some documents, by their numbers in the order of the files, in the order asked for."""
    wanted, first = set(documents), 0
    found: dict[int, str] = {}
    for source in sources:
        for batch in pq.ParquetFile(source).iter_batches(batch_size=_BATCH, columns=["text"]):
            here = [number for number in range(len(batch)) if first + number in wanted]
            texts = batch.column(0).take(pa.array(here, pa.int64())).to_pylist()
            found.update(zip((first + number for number in here), texts, strict=True))
            first += len(batch)
    return [found[number] for number in documents]


def run(ctx: StageContext) -> None:
    """Writes tokenizer.json, token files and index.json under tokens/. Raises UserError N9-DATA-002."""
    data, seed = ctx.settings.data, ctx.settings.seed
    vocab = data.vocab or 1_024
    sources = sorted((ctx.inputs["data.corpus"] / "documents").glob("*.parquet"))
    listing = Listing.of(sources)
    groups = [group(source, path) for source, path in zip(listing.source, listing.path, strict=True)]
    if len(set(groups)) < 2:
        raise UserError(
            "N9-DATA-002",
            f"the corpus has {len(groups)} documents, too few to hold any out",
            str(ctx.inputs["data.corpus"] / "funnel.json"),
            "the funnel tells where pages were dropped; name more [data] sources or loosen [data.quality]",
        )
    out = held_out_groups(groups, listing.language, data.held_out, seed)
    order = listing.order(seed)
    splits = {
        "train": [i for i in order if groups[i] not in out],
        "held_out": [i for i in order if groups[i] in out],
    }
    sample = listing.sample(splits["train"], data.vocab_characters, seed)
    ctx.say(f"training a byte-level BPE of {vocab} entries on {len(sample)} of {len(splits['train'])} documents")
    tokenizer_file = ctx.out / "tokens" / "tokenizer.json"
    if not tokenizer_file.exists():
        try:
            tokenizer = train_tokenizer(texts_at(sources, sample), vocab)
        except ValueError as error:
            raise UserError("N9-DATA-002", str(error), "[data] vocab", f"set it to {256 + len(SPECIAL)} or more") from error
        with ctx.open("tokens/tokenizer.json") as file:
            file.write(tokenizer.to_str(pretty=True).encode())
    else:
        ctx.adopt("tokens/tokenizer.json")
    size = Tokenizer.from_file(str(tokenizer_file)).get_vocab_size()
    width = "uint16" if size <= 1 << 16 else "uint32"
    targets = encode(ctx, sources, tokenizer_file, f"<u{np.dtype(width).itemsize}", len(groups))
    encoded = Encoded(targets, width)

    def kind(document: int) -> dict[str, str]:
        return {"source": listing.source[document], "language": listing.language[document]}

    found = {name: write_split(ctx, name, chosen, encoded, data.shard_tokens, kind) for name, chosen in splits.items()}
    train, held = found["train"], found["held_out"]
    tokens = train["tokens"] + held["tokens"] - len(groups)
    ratio = round((train["bytes"] + held["bytes"]) / max(tokens, 1), 4)
    index = {"format": 1, "dtype": width, "vocab": size, "eos": EOS, "splits": found, "bytes_per_token": ratio}
    with ctx.open("tokens/index.json") as file:
        file.write(json.dumps(index, indent=1, sort_keys=True).encode() + b"\n")
    shutil.rmtree(ctx.out / "work")
    ctx.summary(vocab=size, train_tokens=train["tokens"], held_out_tokens=held["tokens"], bytes_per_token=ratio)
    languages = sorted({*train["by_language"], *held["by_language"]})
    ctx.table(
        "tokens",
        f"Tokens: vocabulary {size}, {ratio} bytes per token",
        ["language", "training", "held out"],
        [[name, train["by_language"].get(name, 0), held["by_language"].get(name, 0)] for name in languages],
        note="Translations of one page are held out together.",
    )
