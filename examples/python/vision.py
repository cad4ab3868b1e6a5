"""Classifies handwritten digits with Aliquot: a small vision transformer, or a small residual network.

    torchrun --standalone --nproc-per-node 2 examples/python/vision.py                  # two ranks, stage 3
    torchrun --standalone --nproc-per-node 2 examples/python/vision.py --model resnet
    python examples/python/vision.py --stage 0                                          # one process

The digits come with scikit-learn: 1797 scans of 8 x 8 pixels. Needs `pip install "aliquot[demo]"`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field

import aliquot
import torch
from digit_models import MODELS
from digit_plot import draw
from display import Display, Report, open_display
from options import options
from rich.console import Console
from schedule import warmup_then_cosine
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional


@dataclass
class Digits:
    """Images [count, 1, 8, 8] of mean 0 and deviation 1, and their classes [count]."""

    images: Tensor
    classes: Tensor


@dataclass
class Course:
    """What a run leaves for the plot: rank 0's loss by step, the test accuracy by the step it was measured at."""

    losses: list[float] = field(default_factory=list)
    accuracy: dict[int, float] = field(default_factory=dict)


def parse_arguments() -> argparse.Namespace:
    parser = options(__doc__ or "", steps=300, lr=2e-3, plot="vision.png")
    parser.add_argument("--model", default="vit", choices=MODELS)
    parser.add_argument("--test-every", type=int, default=25, help="steps between measurements of the test accuracy")
    return parser.parse_args()


def load(device: torch.device) -> tuple[Digits, Digits]:
    """Training and test digits: four fifths and one fifth, in which every class has its part."""
    images, classes = load_digits(return_X_y=True)
    images = (images - images.mean()) / images.std()
    parts = train_test_split(images, classes, test_size=0.2, stratify=classes, random_state=0)
    train_images, test_images = (torch.tensor(part, dtype=torch.float32).view(-1, 1, 8, 8) for part in parts[:2])
    train_classes, test_classes = map(torch.tensor, parts[2:])
    return (
        Digits(train_images.to(device), train_classes.to(device)),
        Digits(test_images.to(device), test_classes.to(device)),
    )


@torch.no_grad()
def guesses(model: nn.Module, digits: Digits) -> Tensor:
    """The likeliest class of each. Every rank asks for all of them, so every rank has the whole answer."""
    return model(digits.images).argmax(1)


def share_right(guessed: Tensor, digits: Digits) -> float:
    return float((guessed == digits.classes).float().mean())


def train(
    args: argparse.Namespace, world: aliquot.World, model: nn.Module, training: Digits, test: Digits, display: Display
) -> Course:
    optimizer = aliquot.AdamW(model, lr=args.lr, weight_decay=0.05, max_grad_norm=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_then_cosine(20, args.steps))
    chance = torch.Generator().manual_seed(args.seed * 10_007 + world.rank)  # each rank draws its own digits
    course = Course()
    for step in range(1, args.steps + 1):
        chosen = torch.randint(len(training.classes), (args.batch,), generator=chance).to(world.device)
        logits = model(training.images[chosen])
        loss = functional.cross_entropy(logits, training.classes[chosen])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()

        course.losses.append(loss.item())
        if step % args.test_every == 0 or step in (1, args.steps):
            course.accuracy[step] = share_right(guesses(model, test), test)
        figures = {"test accuracy": f"{[*course.accuracy.values()][-1]:.1%}"}
        display.show(Report(step, course.losses[-1], figures, aliquot.stats(model).bytes))
    return course


def main() -> None:
    args = parse_arguments()
    world = aliquot.init(transport=args.transport)
    console = Console(quiet=world.rank != 0)
    training, test = load(world.device)
    torch.manual_seed(args.seed)
    model = aliquot.shard(MODELS[args.model](), stage=args.stage)
    with open_display(console, args.steps) as display:
        course = train(args, world, model, training, test, display)
    guessed = guesses(model, test)
    console.print(f"test accuracy {share_right(guessed, test):.2%} of {len(guessed)} images")
    if world.rank == 0:
        draw(
            args.plot, args.model, course.losses, course.accuracy, test.images.cpu(), test.classes.cpu(), guessed.cpu()
        )
    console.print(f"plot: {args.plot}", soft_wrap=True)


if __name__ == "__main__":
    main()
