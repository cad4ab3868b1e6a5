"""The plot of `science.py`: errors over the steps, and two problems as SciPy and as the operator solve them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from plots import picture, saved
from torch import Tensor


def draw(
    path: Path, losses: Sequence[float], errors: Mapping[int, float], first: Tensor, truth: Tensor, guess: Tensor,
    end: float,
) -> None:  # fmt: skip
    """`first` [count, points]; `truth` and `guess` [count, times, points]; the last time is `end`."""
    error = list(errors.values())[-1]
    title = f"A Fourier neural operator solves Burgers' equation: {error:.1%} error on first states it never saw"
    with saved(path, title, 12, 4.5) as figure:
        left, right = figure.subfigures(1, 2, width_ratios=(1, 2.8))
        draw_errors(left.subplots(), losses, errors)
        for i, row in enumerate(right.subplots(2, 4)):
            draw_fields(row[:3], truth[i], guess[i], end)
            draw_end(row[3], first[i], truth[i, -1], guess[i, -1], end)


def draw_errors(axes: Any, losses: Sequence[float], errors: Mapping[int, float]) -> None:
    axes.semilogy(range(1, len(losses) + 1), losses, lw=0.8, label="training batches of rank 0")
    axes.semilogy(list(errors), list(errors.values()), "o-", ms=3, label="first states never seen")
    axes.set(xlabel="step", title="relative L2 error")
    axes.legend()


def draw_fields(row: Any, truth: Tensor, guess: Tensor, end: float) -> None:
    """Space to the right, time upwards."""
    top = float(truth.abs().max())
    for axes, values, name, limit in (
        (row[0], truth, "u(x, t) by SciPy, t upwards", top),
        (row[1], guess, "by the operator", top),
        (row[2], guess - truth, "difference", top / 10),
    ):
        how = {
            "cmap": "RdBu_r",
            "interpolation": "nearest",
            "origin": "lower",
            "aspect": "auto",
            "extent": (0, 2 * np.pi, 0, end),
        }
        colors = picture(axes, values, name, vmin=-limit, vmax=limit, **how)
    axes.figure.colorbar(colors, ax=axes)


def draw_end(axes: Any, first: Tensor, truth: Tensor, guess: Tensor, end: float) -> None:
    x = 2 * np.pi * np.arange(len(first)) / len(first)
    axes.plot(x, first, color="silver", label="t = 0")
    axes.plot(x, truth, color="black", label=f"t = {end:g}, SciPy")
    axes.plot(x, guess, "--", color="tab:red", label=f"t = {end:g}, operator")
    axes.set(title="first and last state", xlabel="x")
    axes.legend(fontsize=6)
