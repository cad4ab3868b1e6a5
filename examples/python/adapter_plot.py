"""The plot of `lora.py`: losses while all parameters and then the adapters learn, and what a rank holds meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plots import saved

ROLES = {
    "parameters": ("param", "master"),
    "gradients": ("grad",),
    "optimizer states": ("exp_avg", "exp_avg_sq"),
}


@dataclass
class Phase:
    """Training on one text: rank 0's loss at each step, the loss on held-out text by step and text, bytes by role."""

    text: str
    losses: list[float]
    held_out: dict[int, dict[str, float]]
    bytes: Mapping[str, int]


def draw(path: Path, pretraining: Phase, adaptation: Phase) -> None:
    with saved(path, "A tiny Llama learns Python's source, then by LoRA alone Python's manual", 10.5, 4) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1.6, 1))
        draw_losses(left, pretraining, adaptation)
        draw_bytes(right, {"all parameters train": pretraining.bytes, "only adapters train": adaptation.bytes})


def draw_losses(axes: Any, pretraining: Phase, adaptation: Phase) -> None:
    change = len(pretraining.losses)
    losses = pretraining.losses + adaptation.losses
    axes.plot(range(1, len(losses) + 1), losses, color="silver", lw=0.8, label="training batches of rank 0")
    for text, color in ((pretraining.text, "tab:blue"), (adaptation.text, "tab:red")):
        for start, phase in ((0, pretraining), (change, adaptation)):
            steps = [start + step for step in phase.held_out]
            values = [measured[text] for measured in phase.held_out.values()]
            axes.plot(steps, values, "o-", ms=3, color=color, label="_" * start + f"{text}, held out")
    axes.axvline(change, color="black", lw=0.8, ls=":")
    axes.set(xlabel="step: all parameters learn the library, then (dotted line) adapters the reference")
    axes.set(ylabel="cross entropy, nats per byte", title="loss")
    axes.legend()


def draw_bytes(axes: Any, held: Mapping[str, Mapping[str, int]]) -> None:
    """A bar per role and phase, in KiB that one rank holds."""
    for i, (phase, by_role) in enumerate(held.items()):
        sizes = [sum(by_role.get(role, 0) for role in roles) / 1024 for roles in ROLES.values()]
        bars = axes.bar([x + 0.4 * i - 0.2 for x in range(len(ROLES))], sizes, 0.38, label=phase)
        axes.bar_label(bars, fmt="{:,.0f}", fontsize=8)
    axes.set_xticks(range(len(ROLES)), list(ROLES))
    axes.set(ylabel="KiB on rank 0", title="what a rank holds")
    axes.grid(visible=False)
    axes.legend()
