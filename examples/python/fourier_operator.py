"""A Fourier neural operator in plain PyTorch: it maps functions to functions, whatever grid they are sampled on.

Li et al. 2021, https://arxiv.org/abs/2010.08895.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class SpectralConvolution(nn.Module):
    """Multiplies the longest waves of [batch, channels, points] by learned complex matrices, and drops the others.

    The weights are pairs of real numbers, which optimizers and shards know; they are complex only where they are used.
    """

    def __init__(self, channels: int, modes: int) -> None:
        super().__init__()
        self.modes = modes
        self.weight = nn.Parameter(torch.randn(modes, channels, channels, 2) / channels)

    def forward(self, x: Tensor) -> Tensor:
        points = x.shape[-1]
        waves = torch.fft.rfft(x)[..., : self.modes]
        mixed = torch.einsum("bik,kio->bok", waves, torch.view_as_complex(self.weight))
        return torch.fft.irfft(functional.pad(mixed, (0, points // 2 + 1 - self.modes)), points)


class Layer(nn.Module):
    """A convolution over the whole circle, a matrix at each point, and the shortcut."""

    def __init__(self, channels: int, modes: int) -> None:
        super().__init__()
        self.spectral = SpectralConvolution(channels, modes)
        self.pointwise = nn.Conv1d(channels, channels, 1)
        self.out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(functional.gelu(self.spectral(x) + self.pointwise(x)))


class FourierOperator(nn.Module):
    """Maps a state [batch, points] and times [batch] to the states at these times, [batch, points]."""

    def __init__(self, channels: int = 40, modes: int = 20, layers: int = 4) -> None:
        super().__init__()
        self.lift = nn.Conv1d(2, channels, 1)
        self.layers = nn.Sequential(*(Layer(channels, modes) for _ in range(layers)))
        self.project = nn.Sequential(nn.Conv1d(channels, 2 * channels, 1), nn.GELU(), nn.Conv1d(2 * channels, 1, 1))

    def forward(self, state: Tensor, times: Tensor) -> Tensor:
        clock = times[:, None].expand_as(state)
        change = self.project(self.layers(self.lift(torch.stack((state, clock), dim=1)))).squeeze(1)
        return state + times[:, None] * change
