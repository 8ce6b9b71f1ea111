"""The decoder: embedding, layers, final norm, output layer; weights drawn the same however the model is cut later."""

from __future__ import annotations

import math

import torch
import xxhash
from torch import Tensor, nn

from ninthsky.model.attention import Attention, LayerCache, RMSNorm, Rope, rope_table
from ninthsky.model.experts import FeedForward, SparseFeedForward
from ninthsky.model.fused import output_loss
from ninthsky.model.shape import Shape


class Layer(nn.Module):
    """Attention, then feed-forward, each behind its norm and added to the stream."""

    def __init__(self, shape: Shape, sparse: bool) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(shape.dim, shape.norm_eps)
        self.attention = Attention(shape)
        self.mlp_norm = RMSNorm(shape.dim, shape.norm_eps)
        self.mlp = SparseFeedForward(shape) if sparse else FeedForward(shape.dim, shape.dense_dim)

    def forward(self, x: Tensor, rope: Rope, mask: Tensor | None, cache: LayerCache | None, start: int) -> Tensor:
        """[B, T, dim] -> [B, T, dim]."""
        x = x + self.attention(self.attention_norm(x), rope, mask, cache, start)
        return x + self.mlp(self.mlp_norm(x))


class Cache:
    """Keys and values of all layers for `rows` sequences of up to `length` positions; `used` of them are filled."""

    def __init__(self, model: Decoder, rows: int, length: int) -> None:
        shape, like = model.shape, model.embedding.weight.detach()
        self.layers = [LayerCache(rows, length, shape.kv_heads, shape.head_dim, like) for _ in range(shape.layers)]
        self.length, self.used = length, 0


class Decoder(nn.Module):
    """A causal decoder of the given shape, in fp32. The same `seed` gives the same weights on any machine and any cut.

    `seed=None` leaves the weights as zeros, for a model that is about to be loaded.
    """

    def __init__(self, shape: Shape, seed: int | None = 0) -> None:
        super().__init__()
        self.shape = shape
        with torch.device("meta"):  # torch's own first draw of the weights would be thrown away
            self.embedding = nn.Embedding(shape.vocab, shape.dim)
            self.layers = nn.ModuleList(Layer(shape, sparse=i >= shape.dense_layers) for i in range(shape.layers))
            self.norm = RMSNorm(shape.dim, shape.norm_eps)
            self.head = nn.Linear(shape.dim, shape.vocab, bias=False)
        self.to_empty(device="cpu")
        self._rope_tables: dict[tuple[int, torch.device], Rope] = {}
        self._draw(seed)

    def forward(
        self,
        tokens: Tensor | None = None,
        *,
        embeddings: Tensor | None = None,
        prefix: int = 0,
        cache: Cache | None = None,
        padding: Tensor | None = None,
    ) -> Tensor:
        """`tokens` [B, T] or `embeddings` [B, T, dim] -> hidden states after the final norm, [B, T, dim].

        Causal; the first `prefix` positions see each other both ways (prefix-LM). With a `cache` the input goes on where
        the last call ended; `padding` [B] is the number of positions on the left that are no part of a row.
        """
        if (tokens is None) == (embeddings is None):
            raise TypeError("give either tokens or embeddings")
        if tokens is not None:
            embeddings = self.embed(tokens)
        assert embeddings is not None
        x, start = embeddings, cache.used if cache else 0
        rope = self._rope(start, x.shape[1], padding, x.device)
        mask = self._mask(start, x.shape[1], prefix, padding, x.device)
        for index, layer in enumerate(self.layers):
            x = layer(x, rope, mask, cache.layers[index] if cache else None, start)
        if cache:
            cache.used += x.shape[1]
        return self.norm(x)

    def embed(self, tokens: Tensor) -> Tensor:
        """LongTensor [B, T] -> [B, T, dim]."""
        return self.embedding(tokens)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., dim] -> [..., vocab] in fp32."""
        return self.head(hidden).float()

    def token_loss(self, hidden: Tensor, targets: Tensor, ignored: int = -100) -> Tensor:
        """Summed cross-entropy, in nats, of [..., dim] against targets [...], without the logits of the whole batch."""
        return output_loss(hidden.flatten(0, -2), self.head.weight, targets.flatten(), ignored)

    def _rope(self, start: int, length: int, padding: Tensor | None, device: torch.device) -> Rope:
        if padding is not None:
            positions = (torch.arange(start, start + length, device=device) - padding[:, None]).clamp(min=0)
            return rope_table(positions, self.shape.head_dim, self.shape.rope_theta)
        rounded = 1 << max(start + length - 1, 63).bit_length()
        if (rounded, device) not in self._rope_tables:
            positions = torch.arange(rounded, device=device)
            self._rope_tables[rounded, device] = rope_table(positions, self.shape.head_dim, self.shape.rope_theta)
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
        """Each weight from a generator of its own, seeded by name (and number of the expert): no order, no cut matters.

        Normal with variance 1 / fan-in; what writes into the stream smaller by sqrt(2 layers) (Radford et al. 2019).
        """
        for name, buffer in self.named_buffers():
            assert name.endswith(("e_score_correction_bias", "load"))
            buffer.zero_()
        into_stream = math.sqrt(2 * self.shape.layers)
        for name, weight in self.named_parameters():
            if seed is None:
                weight.zero_()
            elif weight.dim() == 1:
                weight.fill_(1.0)  # norms
            elif weight.dim() == 3:  # experts [experts, in, out]
                std = weight.shape[1] ** -0.5 / (into_stream if name.endswith("down") else 1.0)
                for number, expert in enumerate(weight):
                    expert.normal_(0.0, std, generator=_generator(seed, f"{name}.{number}"))
            else:  # [out, in]
                std = {"embedding.weight": 0.1, "head.weight": 1.0 / weight.shape[1]}.get(name, weight.shape[1] ** -0.5)
                std /= into_stream if name.endswith(("o_proj.weight", "down.weight")) else 1.0
                weight.normal_(0.0, std, generator=_generator(seed, name))


def _generator(seed: int, name: str) -> torch.Generator:
    return torch.Generator().manual_seed(xxhash.xxh3_64_intdigest(f"{seed}/{name}".encode()) >> 1)
