"""Matrices made orthogonal by the iteration of Newton and Schulz."""

from __future__ import annotations

import torch
from torch import Tensor

from aliquot.alike import alike

Coefficients = tuple[float, float, float]


def orthogonalized(matrices: list[Tensor], coefficients: Coefficients, steps: int, eps: float) -> list[Tensor]:
    """About U V^T of each matrix U S V^T. Those of one shape, or its transpose, are iterated together: single ones of
    usual sizes take the host longer than a GPU.
    """  # fmt: skip
    results: dict[int, Tensor] = {}
    for numbers in alike(range(len(matrices)), lambda number: _wide(matrices[number]).shape):
        batch = torch.stack([_wide(matrices[number]) for number in numbers])
        results |= zip(numbers, iterated(batch, coefficients, steps, eps), strict=True)
    return [results[number].T if _is_tall(matrix) else results[number] for number, matrix in enumerate(matrices)]


def iterated(batch: Tensor, coefficients: Coefficients, steps: int, eps: float) -> Tensor:
    """Of (k, m, n), m <= n: x <- a x + (b x x^T + c (x x^T)^2) x, `steps` times."""
    a, b, c = coefficients
    x: Tensor = batch / torch.linalg.vector_norm(batch, dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _is_tall(matrix: Tensor) -> bool:
    return matrix.shape[0] > matrix.shape[1]


def _wide(matrix: Tensor) -> Tensor:
    return matrix.T if _is_tall(matrix) else matrix
