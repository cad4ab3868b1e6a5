"""Learns what a partial differential equation does, with Aliquot: a Fourier neural operator for Burgers' equation.

    torchrun --standalone --nproc-per-node 2 examples/python/science.py      # two ranks, stage 3
    python examples/python/science.py --stage 0                              # one process, nothing sharded

The operator maps a first state and a time to the state at that time. SciPy solves for random first states at the start,
on each rank for its own. It trains on every second point of the grid, and is tested on first states that it never saw,
also on the full grid, which it never saw either. Needs `pip install "aliquot[demo]"`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import aliquot
import numpy as np
import torch
from burgers import random_states, solve
from burgers_plot import draw
from display import Display, Report, open_display
from fourier_operator import FourierOperator
from options import options
from rich.console import Console
from rich.table import Table
from schedule import warmup_then_cosine
from torch import Tensor, nn

POINTS, TIMES, END, VISCOSITY = 128, 16, 1.5, 0.05


@dataclass
class Solutions:
    """First states [count, points], and the states [count, times, points] at `times`."""

    first: Tensor
    times: Tensor
    states: Tensor

    def every(self, nth: int) -> Solutions:
        """On a coarser grid."""
        return Solutions(self.first[:, ::nth], self.times, self.states[..., ::nth])


def parse_arguments() -> argparse.Namespace:
    parser = options(__doc__ or "", steps=400, lr=4e-3, plot="science.png")
    parser.add_argument("--problems", type=int, default=192, help="first states per rank to train on")
    parser.add_argument("--tests", type=int, default=48, help="first states to test on")
    return parser.parse_args()


def solutions(count: int, seed: int, device: torch.device) -> Solutions:
    first = random_states(count, POINTS, np.random.default_rng(seed))
    times = np.linspace(0, END, TIMES + 1)[1:]
    arrays = (first, times, solve(first, times, VISCOSITY))
    return Solutions(*(torch.tensor(array, dtype=torch.float32, device=device) for array in arrays))


def relative_error(predicted: Tensor, true: Tensor) -> Tensor:
    """L2 norm of the difference over that of the truth, for each field."""
    return (predicted - true).norm(dim=-1) / true.norm(dim=-1)


@torch.no_grad()
def predict(model: nn.Module, given: Solutions) -> Tensor:
    """The states at all times, [count, times, points]. Every rank asks for all, so every rank has the answer."""
    return torch.stack([model(given.first, time.expand(len(given.first))) for time in given.times], dim=1)


def train(
    args: argparse.Namespace, world: aliquot.World, model: nn.Module, problems: Solutions, test: Solutions,
    display: Display,
) -> tuple[list[float], dict[int, float]]:  # fmt: skip
    """Rank 0's loss at each step, and the test error by the step that it was measured at."""
    optimizer = aliquot.AdamW(model, lr=args.lr, weight_decay=1e-4, max_grad_norm=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_then_cosine(20, args.steps, floor=0.01))
    chance = torch.Generator().manual_seed(args.seed * 10_007 + world.rank)
    losses: list[float] = []
    errors: dict[int, float] = {}
    for step in range(1, args.steps + 1):
        which = torch.randint(len(problems.first), (args.batch,), generator=chance).to(world.device)
        when = torch.randint(TIMES, (args.batch,), generator=chance).to(world.device)
        predicted = model(problems.first[which], problems.times[when])
        loss = relative_error(predicted, problems.states[which, when]).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()

        losses.append(loss.item())
        if step % 50 == 0 or step in (1, args.steps):
            errors[step] = float(relative_error(predict(model, test), test.states).mean())
        figures = {"test error": f"{[*errors.values()][-1]:.1%}"}
        display.show(Report(step, losses[-1], figures, aliquot.stats(model).bytes))
    return losses, errors


def best_linear_map(problems: Solutions, test: Solutions) -> Tensor:
    """For each time, the matrix that fits the training problems best (least squares), applied to the tests."""
    first, states = problems.first.double().cpu(), problems.states.double().cpu().flatten(1)
    matrix, *_ = np.linalg.lstsq(first, states, rcond=1e-4)  # what is smaller is rounding
    return (test.first @ torch.as_tensor(matrix).to(test.first)).view_as(test.states)


def error_table(predicted: Tensor, model: nn.Module, problems: Solutions, test: Solutions) -> Table:
    half, trained_on = test.every(2), problems.every(2)
    rows = (
        ("nothing changes", half.first[:, None], half),
        ("best linear map", best_linear_map(trained_on, half), half),
        (f"operator, {POINTS // 2} points as in training", predict(model, half), half),
        (f"operator, {POINTS} points", predicted, test),
    )
    table = Table("prediction", "all times", f"time {END}", title="relative L2 error on first states never seen")
    for name, guess, truth in rows:
        errors = relative_error(guess, truth.states)
        table.add_row(name, f"{errors.mean():.2%}", f"{errors[:, -1].mean():.2%}")
    return table


def main() -> None:
    args = parse_arguments()
    world = aliquot.init(transport=args.transport)
    console = Console(quiet=world.rank != 0)
    with console.status("SciPy solves Burgers' equation"):
        problems = solutions(args.problems, seed=args.seed * 10_007 + world.rank, device=world.device)
        test = solutions(args.tests, seed=0, device=world.device)
    torch.manual_seed(args.seed)
    model = aliquot.shard(FourierOperator(), stage=args.stage)
    with open_display(console, args.steps) as display:
        losses, errors = train(args, world, model, problems.every(2), test, display)
    predicted = predict(model, test)
    console.print(error_table(predicted, model, problems, test))
    if world.rank == 0:
        draw(args.plot, losses, errors, test.first.cpu(), test.states.cpu(), predicted.cpu(), END)
    console.print(f"plot: {args.plot}", soft_wrap=True)


if __name__ == "__main__":
    main()
