"""The plot of `vision.py`: the course of the training, what is taken for what, and every mistake that fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plots import picture, saved
from sklearn.metrics import confusion_matrix
from torch import Tensor

ROWS, COLUMNS = 4, 3  # of mistakes


def draw(
    path: Path, name: str, losses: Sequence[float], accuracy: Mapping[int, float], images: Tensor, truth: Tensor,
    guess: Tensor,
) -> None:  # fmt: skip
    """`images` [count, 1, height, width] of the test, their classes `truth` and `guess` [count]."""
    wrong = (guess != truth).nonzero().flatten().tolist()
    title = f"{name} on digits: {len(wrong)} of {len(truth)} test images wrong, {list(accuracy.values())[-1]:.1%} right"
    with saved(path, title, 11.5, 4) as figure:
        left, middle, right = figure.subfigures(1, 3, width_ratios=(1.3, 1.1, 0.8))
        draw_course(left.subplots(), losses, accuracy)
        draw_confusion(middle.subplots(), confusion_matrix(truth, guess))
        right.suptitle("mistakes: truth, guess", fontsize=10)
        places = right.subplots(ROWS, COLUMNS).ravel()
        for axes in places:
            axes.set_axis_off()
        for axes, i in zip(places, wrong, strict=False):
            picture(axes, images[i, 0], f"{truth[i]}, {guess[i]}", cmap="gray_r")


def draw_course(axes: Any, losses: Sequence[float], accuracy: Mapping[int, float]) -> None:
    axes.semilogy(range(1, len(losses) + 1), losses, color="tab:blue", lw=0.8)
    axes.set(xlabel="step", title="loss of rank 0's batches, test accuracy")
    axes.set_ylabel("cross entropy, nats", color="tab:blue")
    right = axes.twinx()
    right.plot(list(accuracy), [100 * value for value in accuracy.values()], "o-", color="tab:red", ms=3)
    right.set_ylim(0, 101)
    right.set_ylabel("test accuracy, %", color="tab:red")
    right.grid(visible=False)


def draw_confusion(axes: Any, counts: Any) -> None:
    axes.imshow(counts, cmap="Blues")
    axes.set(xticks=range(len(counts)), yticks=range(len(counts)))
    axes.set(xlabel="guess", ylabel="truth", title="test images by truth and guess")
    axes.grid(visible=False)
    for truth, guess in zip(*counts.nonzero(), strict=True):
        color = "white" if counts[truth, guess] > counts.max() / 2 else "black"
        axes.text(guess, truth, counts[truth, guess], ha="center", va="center", color=color, fontsize=7)
