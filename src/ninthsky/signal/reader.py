"""The decoder as a reader of signals: `<signal>` patches `</signal>` question -> answer, scored as text.

Patches see each other both ways (prefix-LM); the text after them is causal, as in pretraining. A kind of signal adds one linear
map from its patches into the stream and one position per patch; all else is the decoder that was pretrained on text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from ninthsky.errors import UserError
from ninthsky.model import Decoder
from ninthsky.model.decoder import Cache
from ninthsky.model.files import load, save

EOS, SIGNAL, END_SIGNAL = 1, 4, 5  # ids in every tokenizer of the project (docs/architecture.md)
ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class Form:
    """Patches of one kind of signal: how many, and how many values each holds."""

    patches: int
    values: int


@dataclass(frozen=True)
class Reading:
    """A batch of one kind: `patches` [B, P, W]; `text` [B, L], question and answer; `target` [B, L], true on the answer."""

    kind: str
    patches: Tensor
    text: Tensor
    target: Tensor


class Reader(nn.Module):
    """A decoder with an entrance for each kind of signal."""

    def __init__(self, decoder: Decoder, forms: Mapping[str, Form], seed: int) -> None:
        super().__init__()
        self.decoder, self.forms = decoder, dict(forms)
        dim = decoder.shape.dim
        draw = torch.Generator().manual_seed(seed)
        self.entrance = nn.ModuleDict({kind: nn.Linear(form.values, dim) for kind, form in forms.items()})
        self.position = nn.ParameterDict({kind: nn.Parameter(torch.empty(form.patches, dim)) for kind, form in forms.items()})
        # A few times a word's embedding: a patch says more than a word, and both arms learn faster (seen on another split).
        size = 3 * float(decoder.embedding.weight.detach().std())
        with torch.no_grad():
            for kind, form in forms.items():
                linear = self.entrance[kind]
                assert isinstance(linear, nn.Linear)
                linear.weight.normal_(0.0, size * form.values**-0.5, generator=draw)
                linear.bias.zero_()
                self.position[kind].normal_(0.0, size, generator=draw)

    def stream(self, kind: str, patches: Tensor) -> Tensor:
        """[B, P, W] -> what the decoder reads before the question, [B, P + 2, dim]."""
        rows = len(patches)
        marks = self.decoder.embed(torch.tensor([SIGNAL, END_SIGNAL], device=patches.device)).expand(rows, 2, -1)
        return torch.cat([marks[:, :1], self.entrance[kind](patches) + self.position[kind], marks[:, 1:]], 1)

    def forward(self, batch: Reading) -> Tensor:
        """Hidden states [B, L, dim], the j-th of which predicts the j-th token of the text."""
        before = self.stream(batch.kind, batch.patches)
        hidden = self.decoder(embeddings=torch.cat([before, self.decoder.embed(batch.text)], 1), prefix=before.shape[1])
        return hidden[:, before.shape[1] - 1 : -1]

    @torch.inference_mode()
    def answer(self, kind: str, patches: Tensor, question: Sequence[int], max_new_tokens: int) -> list[list[int]]:
        """Answers [B] to one question about each signal, likeliest token by token, without `<eos>`."""
        self.eval()
        device = self.decoder.embedding.weight.device
        answers: list[list[int]] = []
        for part in patches.to(device).split(ROWS_AT_ONCE):
            before = self.stream(kind, part)
            asked = self.decoder.embed(torch.tensor([list(question)], device=device)).expand(len(part), -1, -1)
            cache = Cache(self.decoder, len(part), before.shape[1] + len(question) + max_new_tokens)
            hidden = self.decoder(embeddings=torch.cat([before, asked], 1), prefix=before.shape[1], cache=cache)
            tokens = [self.decoder.logits(hidden[:, -1]).argmax(-1)]
            while len(tokens) < max_new_tokens and not bool((torch.stack(tokens) == EOS).any(0).all()):
                tokens.append(self.decoder.logits(self.decoder(tokens[-1][:, None], cache=cache)[:, -1]).argmax(-1))
            said = torch.stack(tokens, 1).tolist()
            answers += [row[: row.index(EOS)] if EOS in row else row for row in said]
        return answers


def answer_loss(reader: Reader, batch: Reading) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the answers' tokens and their `<eos>`: (sum in nats, number of tokens)."""
    hidden = reader(batch)[batch.target]
    logits = reader.decoder.logits(hidden)
    return F.cross_entropy(logits, batch.text[batch.target], reduction="sum"), batch.target.sum()


def question_ids(tokenizer: Tokenizer, question: str) -> list[int]:
    """The question's tokens, as they stand after `</signal>`."""
    return list(tokenizer.encode(question, add_special_tokens=False).ids)


def texts(tokenizer: Tokenizer, question: str, answers: Sequence[str]) -> tuple[Tensor, Tensor]:
    """One question with each of the answers: `text` [N, L] padded with `<eos>`, `target` [N, L]."""
    asked = question_ids(tokenizer, question)
    known = {answer: [*tokenizer.encode(" " + answer, add_special_tokens=False).ids, EOS] for answer in dict.fromkeys(answers)}
    length = len(asked) + max(map(len, known.values()))
    text = torch.full((len(answers), length), EOS, dtype=torch.long)
    target = torch.zeros((len(answers), length), dtype=torch.bool)
    for row, answer in enumerate(answers):
        end = len(asked) + len(known[answer])
        text[row, :end] = torch.tensor(asked + known[answer])
        target[row, len(asked) : end] = True
    return text, target


def save_reader(reader: Reader, folder: Path, tokenizer_json: Path) -> list[Path]:
    """Writes the decoder as an export and the entrances beside it; the paths written. The same weights give the same bytes."""
    save(reader.decoder, folder, tokenizer_json=tokenizer_json)
    weights = {
        name: tensor.detach().float().contiguous()
        for name, tensor in reader.state_dict().items()
        if not name.startswith("decoder.")
    }
    save_file(weights, folder / "entrances.safetensors", metadata={"format": "pt"})
    forms = {kind: {"patches": form.patches, "values": form.values} for kind, form in reader.forms.items()}
    (folder / "entrances.json").write_text(json.dumps(forms, indent=2, sort_keys=True) + "\n", "utf-8")
    return sorted(path for path in folder.iterdir() if path.is_file())


def load_reader(folder: Path) -> Reader:
    """What `save_reader` wrote. Raises UserError N9-SIG-005 where the folder holds no reader."""
    try:
        forms = {kind: Form(**form) for kind, form in json.loads((folder / "entrances.json").read_text("utf-8")).items()}
        weights = load_file(folder / "entrances.safetensors")
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            "N9-SIG-005", f"no reader of signals: {error}", str(folder), "name the folder `reader` of the stage signal.learn"
        ) from error
    reader = Reader(load(folder), forms, seed=0)
    missing = reader.load_state_dict(weights, strict=False)
    if missing.unexpected_keys or any(not name.startswith("decoder.") for name in missing.missing_keys):
        raise UserError(
            "N9-SIG-005", "entrances.safetensors does not fit entrances.json", str(folder), "run the stage signal.learn again"
        )
    return reader.eval()
