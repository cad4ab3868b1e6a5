"""A step of Muon by Aliquot and by torch, in TFLOP/s of the Newton-Schulz iteration, in one run.

    python bench/python/muon.py                                                          a CPU, a small model
    python bench/python/muon.py --size 1.1b --batch 4 --context 512                      one GPU
    torchrun --standalone --nproc-per-node 2 bench/python/muon.py --size 1.1b --batch 4 --context 512

Stepped are the matrices of the blocks of llama.py, in fp32, the rest is frozen; Aliquot in stage 3. Both iterate in
bf16. A step has in it momentum, weight decay and, with several ranks, gathers and broadcasts, but not forward and
backward. All ranks see the same tokens, so that each can take torch's step on its own, of every matrix, while Aliquot's
ranks divide them. Beside them, on the same GPU: the iteration alone, of as many matrices of the same shapes, and a
square matrix product in bf16, the rate that is there to be had.

Counted are the products of Newton-Schulz: of a matrix m x n, m <= n, each of the 5 iterations takes 2 m m n for x x^T,
2 m m m for its square, and 2 m m n for the product with x (Jordan, 2024, https://kellerjordan.github.io/posts/muon/,
counts the same: 2 (2 n m m + m m m)). TFLOP/s are of one GPU: Aliquot's are of its share of the products.

Verified before timed: the first step changes each matrix alike by both, given the same gradients (attention there is
torch's plain one, which rounds alike in every run). Times are medians.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median

import aliquot
import torch
from aliquot.orthogonal import orthogonalized
from gpu.clocks import clock
from llama import SIZES, Llama, next_token_loss
from rich.console import Console
from rich.table import Table
from seeded import materialise
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

COEFFICIENTS, ITERATIONS, EPS = (3.4445, -4.7750, 2.0315), 5, 1e-7
WARM_UP = 3
TOLERANCE = 0.1
"""Of what is changed, the norm of the difference over the norm. Five iterations in bf16 make much of how products are
rounded, which is not alike for one matrix and for several at once."""
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Stepped:
    """What the first step changed, on the host; seconds of each step behind the warm-up."""

    changes: Weights
    seconds: list[float]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="demo")
    parser.add_argument("--batch", type=int, default=4, help="windows, the same on every rank")
    parser.add_argument("--context", type=int, default=128, help="tokens per window")
    parser.add_argument("--steps", type=int, default=20, help="steps that are timed")
    parser.add_argument("--product", type=int, help="width of the square matrices (8192; on a CPU 1024)")
    return parser.parse_args()


def flops(shape: torch.Size) -> int:
    """Of the products in Newton-Schulz."""
    m, n = sorted(shape)
    return ITERATIONS * (4 * m * m * n + 2 * m * m * m)


def meta_model(size: str) -> nn.Module:
    with torch.device("meta"):
        model = Llama(SIZES[size], seed=1)
    for name, param in model.named_parameters():
        param.requires_grad_(name.startswith("blocks") and param.dim() == 2)
    return model


def matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: param for name, param in model.named_parameters() if param.requires_grad}


def by_torch(size: str, tokens: Tensor, steps: int) -> Stepped:
    model = materialise(meta_model(size), tokens.device)

    def weights() -> Weights:
        return {name: param.detach().to("cpu", copy=True) for name, param in matrices(model).items()}

    return stepped(model, torch.optim.Muon(matrices(model).values(), lr=0.02), tokens, steps, weights)


def by_aliquot(size: str, tokens: Tensor, steps: int) -> Stepped:
    model = aliquot.shard(meta_model(size))

    def weights() -> Weights:
        held = aliquot.full_state_dict(model, all_ranks=True)
        return {name: held[name] for name in matrices(model)}

    return stepped(model, aliquot.Muon(model, lr=0.02, params=matrices(model).values()), tokens, steps, weights)


def stepped(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    tokens: Tensor,
    steps: int,
    weights: Callable[[], Weights],
) -> Stepped:
    ticks = clock(tokens.device)

    def step() -> None:
        torch.autograd.backward(next_token_loss(model(tokens[:, :-1]), tokens[:, 1:]))
        ticks.mark()
        optimizer.step()
        ticks.mark()
        optimizer.zero_grad()

    first = weights()
    with sdpa_kernel(SDPBackend.MATH):
        step()
    changes = {name: value.sub_(first.pop(name)) for name, value in weights().items()}
    for _ in range(WARM_UP - 1 + steps):
        step()
    return Stepped(changes, ticks.seconds()[2 * WARM_UP :: 2])


def verified(mine: Weights, theirs: Weights) -> float:
    """The largest difference; ends the run where one is too large."""
    errors = {name: ((mine[name] - expected).norm() / expected.norm()).item() for name, expected in theirs.items()}
    worst = max(errors, key=errors.__getitem__)
    if not errors[worst] <= TOLERANCE:
        sys.exit(f"muon.py: {worst} changes otherwise than by torch.optim.Muon, by {errors[worst]:.2g} of the change")
    return errors[worst]


def seconds_of(work: Callable[[], object], times: int, device: torch.device) -> list[float]:
    for _ in range(WARM_UP):
        work()
    ticks = clock(device)
    ticks.mark()
    for _ in range(times):
        work()
        ticks.mark()
    return ticks.seconds()


def iterate(shapes: Counter[torch.Size], blocks: int, device: torch.device) -> Callable[[], None]:
    """Newton-Schulz of as many matrices of each shape, block by block."""
    of_block = [shape for shape, number in shapes.items() for _ in range(number // blocks)]
    drawn = [torch.randn(shape, device=device, dtype=torch.bfloat16) for shape in of_block]

    def work() -> None:
        for _ in range(blocks):
            orthogonalized(drawn, COEFFICIENTS, ITERATIONS, EPS)

    return work


def product(width: int, device: torch.device) -> Callable[[], Tensor]:
    left, right, out = (torch.randn(width, width, device=device, dtype=torch.bfloat16) for _ in range(3))
    return partial(torch.mm, left, right, out=out)


def main() -> None:
    args = parse_arguments()
    world = aliquot.init()
    shape = (args.batch, args.context + 1)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(SIZES[args.size].vocabulary, shape, generator=generator).to(world.device)
    theirs = by_torch(args.size, tokens, args.steps)
    mine = by_aliquot(args.size, tokens, args.steps)
    difference = verified(mine.changes, theirs.changes)
    width = args.product or (1024 if world.device.type == "cpu" else 8192)
    shapes = Counter(param.shape for param in matrices(meta_model(args.size)).values())
    work = sum(flops(shape) * number for shape, number in shapes.items())
    found = {
        f"{width} x {width} product": (
            2 * width**3,
            seconds_of(product(width, world.device), args.steps, world.device),
        ),
        "Newton-Schulz alone": (
            work,
            seconds_of(iterate(shapes, SIZES[args.size].layers, world.device), args.steps, world.device),
        ),
        "torch.optim.Muon": (work, theirs.seconds),
        f"aliquot.Muon, world size {world.world_size}": (work / world.world_size, mine.seconds),
    }
    if world.rank == 0:
        what = (
            f"{args.size}, {shapes.total()} matrices, {work / 1e12:.4g} TFLOP; first steps differ by {difference:.2g}"
        )
        Console().print(what, table(found))


def table(found: dict[str, tuple[float, list[float]]]) -> Table:
    rates = {name: work / median(seconds) / 1e12 for name, (work, seconds) in found.items()}
    best = next(iter(rates.values()))
    made = Table("", "ms", "TFLOP/s", "of the product's")
    for name, rate in rates.items():
        made.add_row(name, f"{median(found[name][1]) * 1000:.2f}", f"{rate:.4g}", f"{rate / best:.2f}")
    return made


if __name__ == "__main__":
    main()
