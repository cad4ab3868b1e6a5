"""A plain Llama-style decoder: RMSNorm, rotary positions, SDPA with grouped key/value heads, SwiGLU, untied head."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import torch
from seeded import Embedding, Linear, RMSNorm
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Shape:
    """`kv_heads` divides `heads`; `heads` divides `dim`; `ffn` is the width of SwiGLU."""

    dim: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocabulary: int


SIZES = {
    "tiny": Shape(64, 2, 4, 2, 128, 256),  # does everything run?
    "demo": Shape(256, 4, 4, 4, 704, 256),  # that of the main example; its tokens are bytes
    "374m": Shape(1024, 24, 16, 16, 2816, 32000),
    "1.1b": Shape(2048, 22, 32, 8, 5632, 32000),
    "7b": Shape(4096, 32, 32, 8, 14336, 32000),
}


class Attention(nn.Module):
    def __init__(self, shape: Shape, seeds: Iterator[int]) -> None:
        super().__init__()
        self.head_dim = shape.dim // shape.heads
        self.grouped = shape.heads != shape.kv_heads
        self.query = Linear(shape.dim, shape.dim, seeds)
        self.key = Linear(shape.dim, shape.kv_heads * self.head_dim, seeds)
        self.value = Linear(shape.dim, shape.kv_heads * self.head_dim, seeds)
        self.out = Linear(shape.dim, shape.dim, seeds, std=0.02 / math.sqrt(2 * shape.layers))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        query, key, value = (part(x).unflatten(-1, (-1, self.head_dim)) for part in (self.query, self.key, self.value))
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        query, key, value = (heads.transpose(1, 2) for heads in (query, key, value))
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=self.grouped)
        joined: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return joined


class SwiGLU(nn.Module):
    def __init__(self, shape: Shape, seeds: Iterator[int]) -> None:
        super().__init__()
        self.gate = Linear(shape.dim, shape.ffn, seeds)
        self.up = Linear(shape.dim, shape.ffn, seeds)
        self.down = Linear(shape.ffn, shape.dim, seeds, std=0.02 / math.sqrt(2 * shape.layers))

    def forward(self, x: Tensor) -> Tensor:
        narrow: Tensor = self.down(functional.silu(self.gate(x)) * self.up(x))
        return narrow


class Block(nn.Module):
    def __init__(self, shape: Shape, seeds: Iterator[int]) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(shape.dim)
        self.attention = Attention(shape, seeds)
        self.mlp_norm = RMSNorm(shape.dim)
        self.mlp = SwiGLU(shape, seeds)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        mixed: Tensor = x + self.attention(self.attention_norm(x), cos, sin)
        fed: Tensor = mixed + self.mlp(self.mlp_norm(mixed))
        return fed


class Llama(nn.Module):
    """Maps tokens [batch, length] to logits of the token that follows each, [batch, length, vocabulary]."""

    def __init__(self, shape: Shape, seed: int) -> None:
        super().__init__()
        seeds = count(seed * 1_000_003)
        self.head_dim = shape.dim // shape.heads
        self.embedding = Embedding(shape.vocabulary, shape.dim, seeds)
        self.blocks = nn.ModuleList(Block(shape, seeds) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.dim)
        self.head = Linear(shape.dim, shape.vocabulary, seeds)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        cos, sin = rotary(tokens.shape[1], self.head_dim, x)
        for block in self.blocks:
            x = block(x, cos, sin)
        logits: Tensor = self.head(self.norm(x))
        return logits


def rotary(length: int, head_dim: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of RoFormer's angles (https://arxiv.org/abs/2104.09864), each [length, 1, head_dim]."""
    frequencies = 10000.0 ** (-torch.arange(0, head_dim, 2, device=like.device) / head_dim)
    angles = torch.outer(torch.arange(length, device=like.device), frequencies)
    angles = torch.cat((angles, angles), dim=-1).unsqueeze(1)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the feature pairs (i, i + head_dim / 2) of x [batch, length, heads, head_dim]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat((-second, first), dim=-1) * sin.to(x.dtype)


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy in nats per token, in fp32."""
    return functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
