"""A small Llama in PyTorch, laid out as llama.cpp expects it (interleaved rotary pairs, tied embeddings)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


@dataclass(frozen=True)
class ModelConfig:
    """The sizes of the model; every width is a multiple of 32, the block length of Q8_0."""

    vocab_size: int
    width: int = 160
    layers: int = 4
    heads: int = 5
    hidden: int = 448
    context: int = 1024
    rope_base: float = 10000.0
    eps: float = 1e-5
    dropout: float = 0.1

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a learned scale."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        return x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (2i, 2i+1) of the last axis, llama.cpp's NORM layout."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def attend(q: Tensor, k: Tensor, v: Tensor, past: tuple[Tensor, Tensor] | None) -> Tensor:
    """Return causal attention over `k` and `v`, and over one shared prefix, which is never expanded to the batch."""
    batch, heads, length, dim = q.shape
    q = q * dim**-0.5
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    scores = (q @ k.transpose(-1, -2)).masked_fill(~causal, float("-inf"))
    if past is None:
        return scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v
    keys, values = past[0][0], past[1][0]
    together = q.transpose(0, 1).reshape(heads, batch * length, dim)
    before = (together @ keys.transpose(-1, -2)).view(heads, batch, length, -1).transpose(0, 1)
    start = before.shape[-1]
    weights = torch.cat((before, scores), dim=-1).softmax(-1, dtype=torch.float32).to(v.dtype)
    from_prefix = weights[..., :start].transpose(0, 1).reshape(heads, batch * length, start) @ values
    return from_prefix.view(heads, batch, length, dim).transpose(0, 1) + weights[..., start:] @ v


class Block(nn.Module):
    """Attention and a gated feed-forward layer, each behind a norm and a residual connection."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, hidden = config.width, config.hidden
        self.config = config
        self.attn_norm = RMSNorm(width, config.eps)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.ffn_norm = RMSNorm(width, config.eps)
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        batch, length, width = x.shape
        qkv = self.qkv(self.attn_norm(x)).view(batch, length, 3, self.config.heads, self.config.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        mixed = attend(q, k, v, past)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        gate, up = self.gate_up(self.ffn_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up), (k, v)


class TinyLlama(nn.Module):
    """The whole model: tokens in, normalised hidden states out; :meth:`logits` applies the tied output matrix."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.eps)
        self.drop = nn.Dropout(config.dropout)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                shrink = (2 * config.layers) ** -0.5 if name.endswith(("out.weight", "down.weight")) else 1.0
                nn.init.normal_(weight, std=0.04 * shrink)
        angles = config.rope_base ** (-torch.arange(0, config.head_dim, 2).float() / config.head_dim)
        table = torch.arange(config.context).float()[:, None] * angles
        self.register_buffer("cos", table.cos(), persistent=False)
        self.register_buffer("sin", table.sin(), persistent=False)

    def forward(
        self, tokens: Tensor, past: list[tuple[Tensor, Tensor]] | None = None
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Return the hidden states of `tokens` and every layer's keys and values.

        `past` holds the keys and values of one prefix (batch 1), shared by all rows of `tokens`.
        """
        start = past[0][0].shape[2] if past else 0
        length = tokens.shape[1]
        cos, sin = self.cos[start : start + length], self.sin[start : start + length]
        x = self.drop(self.embed(tokens))
        kept = []
        for index, block in enumerate(self.blocks):
            x, keys_values = block(x, cos, sin, past[index] if past else None)
            kept.append(keys_values)
        return self.norm(x), kept

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden @ self.embed.weight.T
