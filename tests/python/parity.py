"""Writes docs/parity.md: how far loss curves of sharded training are from unsharded PyTorch's, in each precision.

    python tests/python/parity.py docs/parity.md

Takes some minutes. Every model of architectures.py trains on two ranks at each stage, over shared memory, and beside it
in one process by PyTorch alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aliquot
import torch
from aliquot.casts import keep
from architectures import ARCHITECTURES
from casts_of_inputs import cast_inputs
from ranks import run_ranks
from torch import Tensor, nn
from training import ADAMW, STAGES, Case, Turn, built, relative_error

WORLD_SIZE = 2
STEPS = 20
SETTINGS = {**ADAMW, "eps": 1e-4}
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
ROUNDING = {"bf16": 2.0**-9, "fp16": 2.0**-12}

HEAD = """# Parity

Loss curves of {steps} steps of AdamW on two ranks, beside unsharded PyTorch on the same global batch: the largest
relative difference of any step. fp32 beside fp32; bf16 and fp16 beside a model of that dtype whose AdamW steps plain
fp32 masters, made by hand. *Noise* is the same between two such unsharded runs whose weights start a rounding apart, by
two seeds: a difference below it says nothing. *Same bits*: the weights of stages 0 to 3 are bitwise equal in the end.
A dash: PyTorch can't run the model in this dtype. The models are those of [models.md](models.md).

Written by `python tests/python/parity.py docs/parity.md`, with aliquot {aliquot} and torch {torch}, on a CPU.

| model | fp32 | bf16 | noise | fp16 | noise | same bits |
|---|--:|--:|--:|--:|--:|:-:|
"""


@dataclass(frozen=True)
class Run:
    """One rank's losses, and the weights in the end."""

    losses: list[Tensor]
    weights: dict[str, Tensor]


def precision_for(model: nn.Module, precision: str) -> aliquot.Precision:
    """Batch norms stay in fp32: PyTorch's, on CPUs, takes no statistics of another dtype than its parameters'."""
    if precision == "fp32":
        return aliquot.Precision()
    norms = tuple(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    return aliquot.Precision(precision, master="fp32", keep_fp32=norms)  # type: ignore[arg-type]


def sharded(rank: int, case: Case, stage: int, precision: str) -> Run:
    whole = built(case)
    chosen = precision_for(whole, precision)
    model: Any = aliquot.shard(whole, stage=stage, units=case.units, precision=chosen)
    optimizer = aliquot.AdamW(model, max_grad_norm=1.0, **SETTINGS)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        losses.append(case.run(model, Turn(rank, step, no_sync=aliquot.no_sync)).float())
        optimizer.step()
    return Run(losses, aliquot.full_state_dict(model, all_ranks=True))


def unsharded(case: Case, precision: str, seed: int | None = None) -> Run:
    """What rank 0 sees. With a seed, weights start a rounding away."""
    replicas = [built(case) for _ in range(WORLD_SIZE)]
    if seed is not None:
        _disturb(replicas, ROUNDING[precision], seed)
    masters = [[p.detach().clone().float() if p.is_floating_point() else p for p in r.parameters()] for r in replicas]
    if precision != "fp32":
        for replica in replicas:
            _narrow(replica, precision)
    trained = [[m.requires_grad_() for m, p in zip(ms, r.parameters(), strict=True) if p.requires_grad]
               for ms, r in zip(masters, replicas, strict=True)]  # fmt: skip
    optimizers = [torch.optim.AdamW(params, **SETTINGS) for params in trained]
    losses = []
    for step in range(STEPS):
        for replica in replicas:
            replica.zero_grad()
        seen = [case.run(replica, Turn(rank, step)).float() for rank, replica in enumerate(replicas)]
        losses.append(seen[0])
        _give_mean_gradients(replicas, trained)
        for params, optimizer, replica in zip(trained, optimizers, replicas, strict=True):
            torch.nn.utils.clip_grad_norm_(params, 1.0)
            optimizer.step()
            _round(params, replica)
    return Run(losses, {})


def _narrow(replica: nn.Module, precision: str) -> None:
    kept = precision_for(replica, precision)
    replica.to(HALVES[precision])
    for module in kept.kept_in(replica):
        module.float()
    keep(replica, kept)
    cast_inputs(replica, HALVES[precision])


def _disturb(replicas: list[nn.Module], amount: float, seed: int) -> None:
    for replica in replicas:
        generator = torch.Generator().manual_seed(seed)
        for param in replica.parameters():
            if param.is_floating_point():
                param.data *= 1 + amount * torch.randn(param.shape, generator=generator)


def _give_mean_gradients(replicas: list[nn.Module], trained: list[list[Tensor]]) -> None:
    of_replicas = [[p.grad for p in r.parameters() if p.requires_grad] for r in replicas]
    for i, grads in enumerate(zip(*of_replicas, strict=True)):
        there = [grad if grad.is_complex() else grad.float() for grad in grads if grad is not None]
        for params in trained:
            params[i].grad = sum(there) / WORLD_SIZE if there else None  # type: ignore[assignment]


def _round(masters: list[Tensor], replica: nn.Module) -> None:
    with torch.no_grad():
        for master, param in zip(masters, (p for p in replica.parameters() if p.requires_grad), strict=True):
            param.copy_(master)


def difference(run: Run, other: Run) -> float:
    return max(relative_error(a, b) for a, b in zip(run.losses, other.losses, strict=True))


def cells(case: Case, precision: str) -> tuple[list[str], bool | None]:
    """What the table says of a precision, and whether the stages end with the same bits."""
    try:
        alone = unsharded(case, precision)
    except (RuntimeError, TypeError, ValueError):
        return ["—"] * (1 if precision == "fp32" else 2), None
    runs = [run_ranks(WORLD_SIZE, sharded, case, stage, precision)[0] for stage in STAGES]
    found = [f"{max(difference(run, alone) for run in runs):.1e}"]
    if precision != "fp32":
        found.append(f"{difference(unsharded(case, precision, 1), unsharded(case, precision, 2)):.1e}")
    first, *others = (run.weights for run in runs)
    return found, all(torch.equal(first[name], other[name]) for other in others for name in first)


def rows() -> Iterator[str]:
    for name, case in ARCHITECTURES.items():
        found, same = zip(*(cells(case, precision) for precision in ("fp32", "bf16", "fp16")), strict=True)
        columns = [cell for of_precision in found for cell in of_precision]
        yield f"| {name} | {' | '.join(columns)} | {'✗' if False in same else '✓'} |"


def main(path: Path) -> None:
    torch_version = torch.__version__.partition("+")[0]
    text = HEAD.format(steps=STEPS, aliquot=aliquot.__version__, torch=torch_version)
    for row in rows():
        print(row, flush=True)
        text += row + "\n"
    path.write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
