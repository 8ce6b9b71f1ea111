"""An exported model that answers: chat turns or plain text in, text out, whole or piece by piece."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer

from ninthsky.errors import UserError
from ninthsky.model import Decoder
from ninthsky.model.files import load
from ninthsky.model.generate import stream

PAD, EOS, USER, ASSISTANT = 0, 1, 2, 3  # ids in every tokenizer of the project (docs/architecture.md)

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Turn:
    """One message of a conversation. What the operator says (`system`) is put before the user's next words."""

    role: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn. Temperature 0 takes the likeliest token each time."""

    max_tokens: int
    temperature: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()  # the answer ends before the first of these


@dataclass
class Answer:
    """An answer, whole."""

    text: str
    prompt_tokens: int
    answer_tokens: int
    finish: Finish


class Engine:
    """Model and tokenizer of one export folder. Answers one question at a time, from any thread."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError N9-MOD-001 or -002 where the folder holds no model of ours, N9-SRV-001 where it has no tokenizer."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise UserError("N9-SRV-001", f"no tokenizer.json in {folder}", str(folder), "export the model with its tokenizer")
        self.model: Decoder = load(folder).eval()
        try:
            self.tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise UserError("N9-SRV-001", f"tokenizer.json is damaged: {error}", str(path), "export the model again") from error
        # A person's text never turns into control tokens, whatever it spells.
        self.tokenizer.encode_special_tokens = True
        self._lock = threading.Lock()

    def text_ids(self, text: str) -> list[int]:
        """Text as it stands, for a plain completion; an empty one starts a document."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids or [EOS]

    def chat_ids(self, turns: Sequence[Turn]) -> list[int]:
        """`<user>` words `<assistant>` answer `<eos>` ... `<user>` words `<assistant>`: the form that align trains on."""
        ids: list[int] = []
        before = ""
        for turn in turns:
            if turn.role == "system":
                before += turn.text + "\n"
                continue
            control = USER if turn.role == "user" else ASSISTANT
            text = before + turn.text if turn.role == "user" else turn.text
            before = before if turn.role == "assistant" else ""
            ids += [control, *self.tokenizer.encode(text, add_special_tokens=False).ids]
            ids += [EOS] if turn.role == "assistant" else []
        return [*ids, ASSISTANT]

    def pieces(self, ids: Sequence[int], sampling: Sampling) -> Iterator[tuple[str, int, Finish | None]]:
        """(new text, tokens so far, why it ended) as they come; only the last has a reason, and its text may be empty.

        Text is held back while it is part of a character, or might be the start of a stop word. Half-read, an answer may be
        closed at any time. Raises ValueError for empty `ids`.
        """
        with self._lock:
            made: list[int] = []
            shown = ""
            for token in stream(self.model, ids, sampling.max_tokens, EOS, sampling.temperature, sampling.seed):
                made.append(token)
                text = self.tokenizer.decode(made, skip_special_tokens=True)
                cut = _first_stop(text, sampling.stop)
                if cut is not None:
                    yield text[len(shown) : cut], len(made), "stop"
                    return
                ready = text[: len(text) - _held_back(text, sampling.stop)]
                if len(ready) > len(shown):
                    yield ready[len(shown) :], len(made), None
                    shown = ready
            text = self.tokenizer.decode(made, skip_special_tokens=True)
            yield text[len(shown) :], len(made), "length" if len(made) == sampling.max_tokens else "stop"

    def answer(self, ids: Sequence[int], sampling: Sampling) -> Answer:
        """The whole answer. Raises ValueError for empty `ids`."""
        every = list(self.pieces(ids, sampling))
        _, count, finish = every[-1]
        assert finish is not None
        return Answer("".join(text for text, _, _ in every), len(ids), count, finish)


def _first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the first stop word begins."""
    found = [text.find(stop) for stop in stops if stop in text]
    return min(found) if found else None


def _held_back(text: str, stops: Sequence[str]) -> int:
    """Letters at the end that cannot be shown yet: an unfinished character, and before it the start of a stop word."""
    finished = text.rstrip("\ufffd")
    begun = 0
    for stop in stops:
        longest = min(len(stop) - 1, len(finished))
        begun = max(begun, next((length for length in range(longest, 0, -1) if finished.endswith(stop[:length])), 0))
    return len(text) - len(finished) + begun


def warm(engine: Engine) -> None:
    """One token, so that the first person does not wait for tables to be built."""
    torch.set_num_threads(1)
    engine.answer([EOS], Sampling(max_tokens=1))
