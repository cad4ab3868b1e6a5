"""LoRA: a frozen model, and beside some of its layers matrices of low rank, which alone are trained."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import torch
from seeded import Linear
from torch import Tensor, nn

PROJECTIONS = ("query", "key", "value", "out")
"""The layers of llama.Attention that are adapted."""


class Adapted(nn.Module):
    """A frozen layer plus a product of two matrices (https://arxiv.org/abs/2106.09685, alpha = rank).

    In use `up` starts at zero. Here it does not, so that both have gradients from the first step, to be verified.
    """

    def __init__(self, frozen: nn.Linear, rank: int, seeds: Iterator[int]) -> None:
        super().__init__()
        self.frozen = frozen
        self.down = Linear(frozen.in_features, rank, seeds)
        self.up = Linear(rank, frozen.out_features, seeds)

    def forward(self, x: Tensor) -> Tensor:
        adapted: Tensor = self.frozen(x) + self.up(self.down(x))
        return adapted


def adapt(model: nn.Module, rank: int, seed: int, dtype: torch.dtype) -> nn.Module:
    """Freezes `model` in `dtype`; adapters are in fp32, or in what their user makes of it."""
    model.requires_grad_(False).to(dtype)
    seeds = count(seed * 1_000_003 + 500_000)
    for module in list(model.modules()):
        for name in PROJECTIONS:
            if isinstance(layer := getattr(module, name, None), nn.Linear):
                setattr(module, name, Adapted(layer, rank, seeds))
    return model
