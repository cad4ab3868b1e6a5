"""Layers whose weights have a seed each, so that one can be drawn alone: on any rank, in any order, straight into
whatever a library keeps of it, and the same in all of them. Nothing has to hold the whole model to start it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Seeded:
    """A layer with one weight."""

    weight: nn.Parameter

    def draw(self) -> Tensor:
        """The weight's first values, whole, in fp32."""
        raise NotImplementedError

    @torch.no_grad()
    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            self.weight.copy_(self.draw())


class Linear(Seeded, nn.Linear):
    """Without bias."""

    def __init__(self, inputs: int, outputs: int, seeds: Iterator[int], std: float = 0.02) -> None:
        self.seed, self.std = next(seeds), std
        super().__init__(inputs, outputs, bias=False)

    def draw(self) -> Tensor:
        return _normal(self.weight.shape, self.std, self.seed)


class Embedding(Seeded, nn.Embedding):
    def __init__(self, tokens: int, dim: int, seeds: Iterator[int]) -> None:
        self.seed = next(seeds)
        super().__init__(tokens, dim)

    def draw(self) -> Tensor:
        return _normal(self.weight.shape, 0.02, self.seed)


class RMSNorm(Seeded, nn.RMSNorm):
    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=1e-5)  # torch's own default depends on the dtype

    def draw(self) -> Tensor:
        return torch.ones(self.weight.shape, device=_drawing_device())


def materialise(model: nn.Module, device: torch.device) -> nn.Module:
    """Gives a model from the meta device its values."""
    model.to_empty(device=device)
    for module in model.modules():
        if isinstance(module, Seeded):
            module.reset_parameters()
    return model


def _drawing_device() -> torch.device:
    """The GPU where there is one, for its speed: another device would draw other values."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _normal(shape: torch.Size, std: float, seed: int) -> Tensor:
    device = _drawing_device()
    generator = torch.Generator(device).manual_seed(seed)
    return torch.empty(shape, device=device).normal_(std=std, generator=generator)
