"""Held-out text by language and source: bits per byte of the model beside what counting finds in the same training tokens.

Bits per byte, not loss per token: it is the same for every vocabulary. Bytes are those of the text itself, counted token by
token; what telling the end of a document costs is in the bits, and has no byte.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ninthsky.errors import UserError
from ninthsky.model.decoder import Decoder
from ninthsky.train.text.baseline import count_shares, held_out_bytes, model_nats
from ninthsky.train.text.cursor import TokenFile
from ninthsky.train.text.ngram import KneserNey

ORDER = 5
KNESER_NEY = f"kneser-ney {ORDER}-gram"
SEEN = 13  # tokens in a row that count as known text when the training tokens have them too (Brown et al. 2020, appendix C)
COUNTED = 50_000_000  # training tokens that are counted at most, in evenly spaced blocks
BLOCK = 1 << 16


@dataclass(frozen=True)
class Alphabet:
    """How much text each token stands for; special tokens stand for none."""

    bytes: NDArray[np.int64]  # [vocab]
    characters: NDArray[np.int64]  # [vocab]: characters that begin in it

    @classmethod
    def of(cls, folder: Path, vocab: int) -> Alphabet | None:
        """From tokenizer.json of a byte-level vocabulary; None where there is none. Raises UserError N9-TRN-001 where it is
        damaged."""
        from tokenizers import Tokenizer, pre_tokenizers

        path = folder / "tokenizer.json"
        if not path.exists():
            return None
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises no narrower class, whatever is wrong with the file
            raise UserError("N9-TRN-001", f"the tokenizer is damaged: {error}", str(path), "make the tokens again") from error
        if type(tokenizer.decoder).__name__ != "ByteLevel":
            return None
        letters, special = set(pre_tokenizers.ByteLevel.alphabet()), set(tokenizer.get_added_tokens_decoder())
        first = _first_bytes(letters)
        sizes, characters = np.zeros((2, vocab), dtype=np.int64)
        for text, number in tokenizer.get_vocab(with_added_tokens=True).items():
            if number not in special and number < vocab:
                sizes[number] = len(text)
                characters[number] = sum(letter in first for letter in text)
        return cls(sizes, characters)


def _first_bytes(letters: set[str]) -> set[str]:
    """Letters of the byte-level alphabet that stand for a byte with which a UTF-8 character begins.

    The alphabet (Radford et al. 2019, encoder.py): printable Latin-1 bytes stand for themselves, the others are numbered
    through from U+0100.
    """
    printable = [byte for byte in range(256) if chr(byte) in letters]
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    letter = {byte: chr(byte) for byte in printable} | {byte: chr(256 + at) for at, byte in enumerate(hidden)}
    return {letter[byte] for byte in range(256) if not 0x80 <= byte < 0xC0}


@dataclass(frozen=True)
class Row:
    """Held-out text of one language, one source, or all. `nats` are sums over its tokens."""

    name: str
    tokens: int
    bytes: float
    characters: int | None
    seen: float  # share of its tokens that stand in SEEN tokens in a row which training tokens have too
    nats: dict[str, float]

    def bits_per_byte(self, scorer: str) -> float | None:
        """None where nothing tells how many bytes there are."""
        return self.nats[scorer] / math.log(2) / self.bytes if self.bytes else None

    def nats_per_token(self, scorer: str) -> float:
        """Mean loss."""
        return self.nats[scorer] / self.tokens

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "tokens": self.tokens,
            "bytes": self.bytes or None,
            "characters": self.characters,
            "seen": self.seen,
            "bits_per_byte": {scorer: self.bits_per_byte(scorer) for scorer in self.nats},
            "nats_per_token": {scorer: self.nats_per_token(scorer) for scorer in self.nats},
        }


@dataclass(frozen=True)
class Evaluation:
    """All of it, then by language, then by source and language."""

    scorers: tuple[str, ...]
    all: Row
    languages: tuple[Row, ...]
    parts: tuple[Row, ...]

    @property
    def rows(self) -> tuple[Row, ...]:
        """Everything that is worth a line: a part alone in its language is that language."""
        return (self.all, *self.languages, *(self.parts if len(self.parts) > len(self.languages) else ()))

    def record(self) -> dict[str, Any]:
        """For JSON: `scores` of all held-out text, and every row."""
        scores = [
            {
                "name": scorer,
                "nats_per_token": self.all.nats_per_token(scorer),
                "bits_per_byte": self.all.bits_per_byte(scorer),
                "tokens": self.all.tokens,
            }
            for scorer in self.scorers
        ]
        return {"scores": scores, "rows": [row.record() for row in self.rows]}

    def lines(self) -> list[str]:
        """As a table."""
        wide = max(len(row.name) for row in self.rows) + 2
        lines = [
            "bits per byte".ljust(wide)
            + "".join(f"{scorer:>20s}" for scorer in self.scorers)
            + f"{'bytes':>12s}{'characters':>12s}{'seen':>7s}",
        ]
        for row in self.rows:
            bits = [row.bits_per_byte(scorer) for scorer in self.scorers]
            characters = "unknown" if row.characters is None else f"{row.characters:,d}"
            lines.append(
                row.name.ljust(wide)
                + "".join(f"{'unknown' if value is None else f'{value:.4f}':>20s}" for value in bits)
                + f"{row.bytes:12,.0f}{characters:>12s}{row.seen:7.1%}"
            )
        lines.append(
            "nats per token".ljust(wide) + "".join(f"{self.all.nats_per_token(scorer):20.4f}" for scorer in self.scorers)
        )
        lines.append(f"seen: share of tokens within {SEEN} in a row that the training tokens have as well")
        return lines


def evaluate(
    model: Decoder,
    folder: Path,
    sequence: int,
    stride: int | None = None,
    limit: int | None = None,
    say: Callable[[str], object] = str,
    document_mask: bool = False,
) -> Evaluation:
    """Scores the held-out split of a token folder. `limit` tokens at most, from the front; with `document_mask` the model
    sees of a window what is in the token's own document.

    Raises UserError N9-TRN-001 where tokens and model do not fit, or the index tells another number of bytes than the tokens.
    """
    train, held_out = (TokenFile.open(folder, split) for split in ("train", "held_out"))
    if model.shape.vocab != held_out.vocab:
        what = f"the model knows {model.shape.vocab} tokens, the folder was written with {held_out.vocab}"
        raise UserError("N9-TRN-001", what, str(folder), "name the tokens that the model was trained on")
    ids = held_out.tokens[: None if limit is None else limit + 1]
    train = counted(train)
    say("counting the training tokens")
    shares = count_shares(train, ids)
    shares[KNESER_NEY] = KneserNey.fit(train.tokens, train.vocab, ORDER).probabilities(ids)[1:]
    say("scoring held-out text")
    nats = {"model": model_nats(model, ids, sequence, stride, eos=held_out.eos if document_mask else None)}
    nats |= {name: -np.log(shares[name]) for name in (KNESER_NEY, "bigram", "unigram")}
    return gathered(held_out, ids, nats, seen_before(train.tokens, ids)[1:], Alphabet.of(folder, held_out.vocab))


def gathered(
    held_out: TokenFile,
    ids: NDArray[Any],
    nats: dict[str, NDArray[np.float64]],
    seen: NDArray[np.bool_],
    alphabet: Alphabet | None,
) -> Evaluation:
    """Losses of ids[1:] summed by language and part."""
    parts = [part for part in held_out.parts if part["start"] + 1 < len(ids)]
    if alphabet is not None:
        for part in parts:
            own = int(alphabet.bytes[ids[part["start"] : part["start"] + part["tokens"]].astype(np.int64)].sum())
            if part["start"] + part["tokens"] <= len(ids) and own != part["bytes"]:
                what = f"{_name(part)}: its tokens stand for {own} bytes, the index says {part['bytes']}"
                raise UserError("N9-TRN-001", what, "", "make the tokens again")
    known = ids[1:].astype(np.int64)

    def row(name: str, spans: Sequence[slice]) -> Row:
        at = np.concatenate([np.arange(len(known))[span] for span in spans])
        if alphabet is not None:
            size: float = int(alphabet.bytes[known[at]].sum())
        else:
            size = len(at) * (held_out_bytes(held_out) or 0.0)
        characters = int(alphabet.characters[known[at]].sum()) if alphabet is not None else None
        return Row(
            name, len(at), size, characters, float(seen[at].mean()), {key: float(v[at].sum()) for key, v in nats.items()}
        )

    spans = {_name(part): slice(max(part["start"] - 1, 0), part["start"] + part["tokens"] - 1) for part in parts}
    languages = sorted({part["language"] for part in parts})
    return Evaluation(
        tuple(nats),
        row("all", [slice(None)]),
        tuple(row(name, [spans[_name(part)] for part in parts if part["language"] == name]) for name in languages),
        tuple(row(name, [span]) for name, span in spans.items()),
    )


def _name(part: dict[str, Any]) -> str:
    return f"{Path(part['source']).name}/{part['language']}"


def counted(train: TokenFile, limit: int = COUNTED) -> TokenFile:
    """The same where it is no longer than `limit`, else evenly spaced blocks of it, as one stretch."""
    if len(train.tokens) <= limit:
        return train
    starts = np.linspace(0, len(train.tokens) - BLOCK, limit // BLOCK).astype(np.int64)
    blocks = np.concatenate([train.tokens[start : start + BLOCK] for start in starts])
    return TokenFile(blocks, train.vocab, train.eos, {}, train.bytes_per_token)


def seen_before(train: NDArray[Any], ids: NDArray[Any], length: int = SEEN) -> NDArray[np.bool_]:
    """Which of `ids` stand within `length` tokens in a row that `train` has as well (by a 64-bit hash of each such row)."""
    found = np.zeros(len(ids), dtype=bool)
    if min(len(train), len(ids)) < length:
        return found
    starts = np.flatnonzero(np.isin(_hashes(ids, length), _hashes(train, length)))
    steps = np.zeros(len(ids) + 1, dtype=np.int64)
    np.add.at(steps, starts, 1)
    np.add.at(steps, starts + length, -1)
    return np.asarray(np.cumsum(steps)[:-1] > 0)


def _hashes(ids: NDArray[Any], length: int) -> NDArray[np.uint64]:
    hashes = np.zeros(len(ids) - length + 1, dtype=np.uint64)
    for at in range(length):
        hashes = (hashes ^ ids[at : at + len(hashes)].astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        hashes ^= hashes >> np.uint64(29)
    return hashes
