"""The decoder: embedding, layers, final norm, output layer; weights drawn the same however the model is cut later."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, noop_context_fn

from ninthsky.errors import UserError
from ninthsky.model.attention import Attention, Documents, LayerCache, Mask, RMSNorm, Rope, rope_table
from ninthsky.model.draw import draw
from ninthsky.model.experts import FeedForward, SparseFeedForward
from ninthsky.model.fused import output_loss
from ninthsky.model.shape import Shape


class Layer(nn.Module):
    """Attention, then feed-forward, each behind its norm and added to the stream.

    With `recompute` only the input is kept for the backward, which does the forward again: the same operations on the same
    numbers, with the router's choices held and its load not counted anew, so the gradient is the same to the bit.
    """

    recompute = False

    def __init__(self, shape: Shape, sparse: bool) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(shape.dim, shape.norm_eps)
        self.attention = Attention(shape)
        self.mlp_norm = RMSNorm(shape.dim, shape.norm_eps)
        self.mlp = SparseFeedForward(shape) if sparse else FeedForward(shape.dim, shape.dense_dim)

    def forward(self, x: Tensor, rope: Rope, mask: Mask, cache: LayerCache | None, start: int) -> Tensor:
        """[B, T, dim] -> [B, T, dim]."""
        if not self.recompute or cache is not None or not torch.is_grad_enabled():
            return self._forward(x, rope, mask, cache, start)
        held = self.mlp.router.held if isinstance(self.mlp, SparseFeedForward) else noop_context_fn
        out: Tensor = checkpoint(
            self._forward, x, rope, mask, None, start, use_reentrant=False, preserve_rng_state=False, context_fn=held
        )
        return out

    def _forward(self, x: Tensor, rope: Rope, mask: Mask, cache: LayerCache | None, start: int) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rope, mask, cache, start)
        return x + self.mlp(self.mlp_norm(x))


@dataclass(frozen=True)
class Part:
    """Layers `first` to `last` (excluded) of `layers`; the embedding goes with the first, norm and head with the last."""

    first: int
    last: int
    layers: int

    @property
    def embeds(self) -> bool:
        """Whether tokens come in here."""
        return self.first == 0

    @property
    def heads(self) -> bool:
        """Whether the decoder ends here."""
        return self.last == self.layers

    @classmethod
    def even(cls, layers: int, parts: int) -> list[Part]:
        """`parts` of them with as many layers each, some later ones one fewer where it does not come out even."""
        ends = [-(-layers * number // parts) for number in range(parts + 1)]
        return [cls(first, last, layers) for first, last in itertools.pairwise(ends)]


class Leaving(Exception):
    """Ends the forward of a part that is not the last one: whoever runs parts catches it and sends `hidden` [B, T, dim] on."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__("hidden states leave this part")
        self.hidden = hidden


class Layers(nn.ModuleList):
    """Layers under their numbers in the whole decoder, so that a part's weights have the whole's names."""

    def __init__(self, layers: Iterable[nn.Module], first: int = 0) -> None:
        super().__init__()
        for number, layer in enumerate(layers, first):
            self.add_module(str(number), layer)


class Cache:
    """Keys and values of all layers for `rows` sequences of up to `length` positions; `used` of them are filled."""

    def __init__(self, model: Decoder, rows: int, length: int) -> None:
        shape, like = model.shape, model.embedding.weight.detach()
        self.layers = [LayerCache(rows, length, shape.kv_heads, shape.head_dim, like) for _ in range(shape.layers)]
        self.length, self.used = length, 0


class Decoder(nn.Module):
    """A causal decoder of the given shape, in fp32. The same `seed` gives the same weights on any machine and any cut.

    `seed=None` leaves the weights as zeros, for a model that is about to be loaded; with `held=False` there is no memory
    behind them (torch's meta device) until a rank takes its own part of them (`train.parallel`). With a `part` only that
    part exists, under the same names and with the same weights; its forward takes the hidden states that were put into
    `arrived` in place of tokens, and raises `Leaving` where the decoder goes on elsewhere.
    """

    arrived: Tensor | None = None
    z_loss: float = 0.0
    spread: tuple[int, int] = (0, 1)  # (which part, of how many): the positions of each sequence that this rank has

    def __init__(self, shape: Shape, seed: int | None = 0, part: Part | None = None, held: bool = True) -> None:
        super().__init__()
        self.shape, self.part, self.seed = shape, part or Part(0, shape.layers, shape.layers), seed
        with torch.device("meta"):  # torch's own first draw of the weights would be thrown away
            if self.part.embeds:
                self.embedding = nn.Embedding(shape.vocab, shape.dim)
            numbers = range(self.part.first, self.part.last)
            self.layers = Layers((Layer(shape, sparse=i >= shape.dense_layers) for i in numbers), self.part.first)
            if self.part.heads:
                self.norm = RMSNorm(shape.dim, shape.norm_eps)
                self.head = nn.Linear(shape.dim, shape.vocab, bias=False)
        self._rope_tables: dict[tuple[int, torch.device], Rope] = {}
        if held:
            self.to_empty(device="cpu")
            self._draw(seed)

    def forward(
        self,
        tokens: Tensor | None = None,
        *,
        embeddings: Tensor | None = None,
        prefix: int = 0,
        cache: Cache | None = None,
        padding: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:
        """`tokens` [B, T] or `embeddings` [B, T, dim] -> hidden states after the final norm, [B, T, dim].

        Causal; the first `prefix` positions see each other both ways (prefix-LM). With a `cache` the input goes on where
        the last call ended; `padding` [B] is the number of positions on the left that are no part of a row. `documents`
        [B, T] numbers the documents of a row: a position sees its own only. Rotary positions go on across documents: they
        act through distances alone.
        """
        if (tokens is None) == (embeddings is None):
            raise TypeError("give either tokens or embeddings")
        if not self.part.embeds:
            embeddings = self.arrived
        elif tokens is not None:
            embeddings = self.embed(self.own(tokens))
        elif embeddings is not None:
            embeddings = self.own(embeddings)
        assert embeddings is not None
        x, start, length = embeddings, cache.used if cache else 0, embeddings.shape[1] * self.spread[1]
        rope = self._rope(start, length, padding, x.device)
        mask: Mask = self._mask(start, length, prefix, padding, x.device)
        if documents is not None:
            if mask is not None:
                raise TypeError("documents go with neither prefix, padding nor cache")
            mask = Documents(documents)
        for index, layer in enumerate(self.layers):
            x = layer(x, rope, mask, cache.layers[index] if cache else None, start)
        if cache:
            cache.used += x.shape[1]
        if not self.part.heads:
            raise Leaving(x)
        return self.norm(x)

    def cut(self, part: Part) -> Decoder:
        """That part alone. It shares its weights with this decoder, which can be let go."""
        piece = copy.copy(self)
        piece._modules = dict(self._modules)
        piece.part = part
        piece.layers = Layers((self.layers[number] for number in range(part.first, part.last)), part.first)
        if not part.embeds:
            del piece.embedding
        if not part.heads:
            del piece.norm, piece.head
        return piece

    def own(self, whole: Tensor) -> Tensor:
        """[B, T, ...] of all positions -> [B, T / parts, ...] of those that this rank has; the same where nothing is spread.

        Raises UserError N9-CFG-013 where the parts do not come out even.
        """
        part, parts = self.spread
        if parts == 1:
            return whole
        if whole.shape[1] % parts:
            what = f"cp x tp = {parts} does not divide the {whole.shape[1]} positions of a sequence"
            raise UserError("N9-CFG-013", what, "[mesh]", f"set [train] sequence to a multiple of {parts}")
        return whole.chunk(parts, 1)[part]

    def stream_shape(self, tokens: Tensor | None, embeddings: Tensor | None = None) -> tuple[int, int, int]:
        """Shape of what goes from layer to layer on this rank for such an input: [B, T / parts, dim]."""
        given = tokens if tokens is not None else embeddings
        assert given is not None
        return given.shape[0], given.shape[1] // self.spread[1], self.shape.dim

    def embed(self, tokens: Tensor) -> Tensor:
        """LongTensor [B, T] -> [B, T, dim]."""
        return self.embedding(tokens)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., dim] -> [..., vocab] in fp32."""
        return self.head(hidden).float()

    def token_loss(self, hidden: Tensor, targets: Tensor, ignored: int = -100) -> Tensor:
        """Summed cross-entropy, in nats, of [..., dim] against targets [...], without the logits of the whole batch.

        With `z_loss` the gradient is that of cross-entropy + z_loss x log(Z)^2, Z being the softmax's denominator, which
        keeps logits from drifting (PaLM, arXiv 2204.02311, 5); the number is the cross-entropy alone, so losses compare.
        Where positions are spread over ranks, `targets` [B, T] are of all, the sum is over this rank's.
        """
        targets = self.own(targets)
        return output_loss(hidden.flatten(0, -2), self.head.weight, targets.flatten(), ignored, z_loss=self.z_loss)

    def _rope(self, start: int, length: int, padding: Tensor | None, device: torch.device) -> Rope:
        if padding is not None:
            positions = (torch.arange(start, start + length, device=device) - padding[:, None]).clamp(min=0)
            return rope_table(positions, self.shape.rotary_dim, self.shape.rope_theta)
        rounded = 1 << max(start + length - 1, 63).bit_length()
        if (rounded, device) not in self._rope_tables:
            positions = torch.arange(rounded, device=device)
            self._rope_tables[rounded, device] = rope_table(positions, self.shape.rotary_dim, self.shape.rope_theta)
        cos, sin = self._rope_tables[rounded, device]
        return cos[start : start + length], sin[start : start + length]

    def _mask(self, start: int, length: int, prefix: int, padding: Tensor | None, device: torch.device) -> Tensor | None:
        """None for the plain causal rule, else True where row t may see column s; padding sees itself, to stay finite."""
        if padding is None and prefix <= 1 and start == 0:
            return None
        rows = torch.arange(start, start + length, device=device)[:, None]
        columns = torch.arange(start + length, device=device)[None, :]
        allowed = columns <= rows
        if prefix > 1:
            allowed = allowed | ((rows < prefix) & (columns < prefix))
        if padding is not None:
            allowed = allowed & (columns >= padding[:, None, None]) | (columns == rows)
            return allowed[:, None]  # one mask for all heads
        return allowed

    @torch.no_grad()
    def _draw(self, seed: int | None) -> None:
        for name, buffer in self.named_buffers():
            assert name.endswith(("e_score_correction_bias", "load"))
            buffer.zero_()
        for name, weight in self.named_parameters():
            if seed is None:
                weight.zero_()
            else:
                draw(weight, name, seed, self.shape.layers)
