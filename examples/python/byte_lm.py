"""A byte-level decoder-only transformer in plain PyTorch: RMSNorm, rotary positions, causal attention, SwiGLU.

It knows nothing of Aliquot. Every repeated block becomes a unit when the model is sharded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

VOCABULARY = 256  # one token per byte


@dataclass(frozen=True)
class Shape:
    """Sizes of the model. `dim` is a multiple of `heads`, and dim / heads is even (rotary positions turn pairs)."""

    dim: int = 256
    layers: int = 4
    heads: int = 4
    context: int = 128

    @property
    def hidden(self) -> int:
        """Width of SwiGLU: 8/3 dim gives it the weights of a plain 4 dim MLP; rounded up to a multiple of 64."""
        return math.ceil(8 * self.dim / 3 / 64) * 64


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.qkv = nn.Linear(shape.dim, 3 * shape.dim, bias=False)
        self.out = nn.Linear(shape.dim, shape.dim, bias=False)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        batch, length, dim = x.shape
        heads = self.qkv(x).view(batch, length, 3, self.heads, dim // self.heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(
            rotate(query, angles), rotate(key, angles), value, is_causal=True
        )
        return self.out(mixed.transpose(1, 2).reshape(batch, length, dim))


class SwiGLU(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate = nn.Linear(shape.dim, shape.hidden, bias=False)
        self.up = nn.Linear(shape.dim, shape.hidden, bias=False)
        self.down = nn.Linear(shape.hidden, shape.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(shape.dim)
        self.attention = Attention(shape)
        self.mlp_norm = nn.RMSNorm(shape.dim)
        self.mlp = SwiGLU(shape)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), angles)
        return x + self.mlp(self.mlp_norm(x))


class ByteLM(nn.Module):
    """Maps bytes [batch, length] to logits of the byte that follows each, [batch, length, 256]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(VOCABULARY, shape.dim)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.dim)
        self.head = nn.Linear(shape.dim, VOCABULARY, bias=False)
        self.apply(self._initialize)

    def forward(self, tokens: Tensor) -> Tensor:
        angles = rotary_angles(tokens.shape[1], self.shape.dim // self.shape.heads, tokens.device)
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, angles)
        return self.head(self.norm(x))

    def _initialize(self, module: nn.Module) -> None:
        """Normal weights as in GPT-2; what writes to the residual stream starts smaller the deeper the model is."""
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, Block):
            for writer in (module.attention.out, module.mlp.down):
                nn.init.normal_(writer.weight, std=0.02 / math.sqrt(2 * self.shape.layers))


def rotary_angles(length: int, head_dim: int, device: torch.device) -> Tensor:
    """How far each position turns each pair of features, [length, head_dim / 2] (Su et al. 2021, RoFormer)."""
    frequencies = 10000.0 ** (-torch.arange(0, head_dim, 2, device=device) / head_dim)
    return torch.outer(torch.arange(length, device=device), frequencies)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turns the feature pairs (i, i + head_dim / 2) of x [batch, heads, length, head_dim]."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


def next_byte_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy in nats per byte."""
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


@torch.no_grad()
def generate(model: nn.Module, prompt: bytes, count: int, context: int, seed: int, temperature: float = 0.8) -> bytes:
    """`prompt` and `count` sampled bytes. Ranks that pass the same seed run the same forwards and sample the same."""
    chance = torch.Generator().manual_seed(seed)
    tokens = torch.tensor([list(prompt)], device=next(model.parameters()).device)
    for _ in range(count):
        logits = model(tokens[:, -context:])[:, -1]
        choice = torch.multinomial(torch.softmax(logits.cpu() / temperature, dim=-1), 1, generator=chance)
        tokens = torch.cat((tokens, choice.to(tokens.device)), dim=1)
    return bytes(tokens[0].tolist())
