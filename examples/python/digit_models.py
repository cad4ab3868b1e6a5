"""Two classifiers of 8 x 8 images in plain PyTorch: a vision transformer and a residual network."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 10
SIDE = 8  # pixels


class Block(nn.Module):
    """Pre-norm attention and MLP, each added to what it reads."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.attention_norm(x)
        x = x + self.attention(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp(self.mlp_norm(x))


class VisionTransformer(nn.Module):
    """Patches of 2 x 2 pixels as tokens (Dosovitskiy et al. 2021), their mean classified."""

    def __init__(self, dim: int = 64, layers: int = 4, heads: int = 4, patch: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, dim, patch, stride=patch)
        self.positions = nn.Parameter(0.5 * torch.randn((SIDE // patch) ** 2, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(tokens)).mean(1))


class Residual(nn.Module):
    """Two convolutions beside a shortcut. Group norm: it knows no batch, so ranks need not agree on statistics."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.first_norm = nn.GroupNorm(8, out)
        self.second = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.second_norm = nn.GroupNorm(8, out)
        same = stride == 1 and channels == out
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.first_norm(self.first(x)))
        return functional.relu(self.second_norm(self.second(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """Three pairs of residual blocks, at 8 x 8, 4 x 4 and 2 x 2 (He et al. 2016)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        pairs = ((width, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 2))
        self.blocks = nn.Sequential(*(Residual(*sizes) for a, b, s in pairs for sizes in ((a, b, s), (b, b, 1))))
        self.head = nn.Linear(4 * width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(images)).mean((2, 3)))


MODELS: dict[str, type[nn.Module]] = {"vit": VisionTransformer, "resnet": ResNet}
