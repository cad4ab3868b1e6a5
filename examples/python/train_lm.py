"""Trains a byte-level language model with Aliquot: parameters, gradients and optimizer states spread over the ranks.

    torchrun --standalone --nproc-per-node 2 examples/python/train_lm.py     # two ranks, stage 3
    python examples/python/train_lm.py --stage 0                             # one process, nothing sharded

The text is the source of Python's own standard library, or any other with --data. Needs rich:
`pip install "aliquot[demo]"`.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import aliquot
import torch
from byte_lm import ByteLM, Shape, generate, next_byte_loss
from byte_text import Windows, files_of, read_bytes, split, standard_library
from closing import StopWatch, memory_table, time_table
from display import Display, Report, open_display
from rich.console import Console
from rich.markup import escape
from schedule import warmup_then_cosine
from torch import Tensor, nn


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = parser.add_argument_group("model")
    model.add_argument("--dim", type=int, default=256)
    model.add_argument("--layers", type=int, default=4)
    model.add_argument("--heads", type=int, default=4)
    model.add_argument("--context", type=int, default=128, help="bytes that the model sees at once")
    training = parser.add_argument_group("training")
    training.add_argument("--batch", type=int, default=8, help="windows per rank and step")
    training.add_argument("--steps", type=int, default=300)
    training.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    training.add_argument("--warmup", type=int, default=20, help="steps until the peak")
    training.add_argument("--moment-bits", type=int, default=32, choices=(8, 32), help="of AdamW's moments")
    training.add_argument("--validate-every", type=int, default=50, help="steps between validations")
    training.add_argument("--seed", type=int, default=1)
    sharding = parser.add_argument_group("sharding")
    sharding.add_argument("--stage", type=int, default=3, choices=range(4), help="0 nothing .. 3 everything")
    sharding.add_argument("--transport", default="auto", choices=("auto", "nccl", "shared_memory", "process_group"))
    text = parser.add_argument_group("text")
    text.add_argument("--data", type=Path, help="a file or a folder; default: Python's standard library")
    text.add_argument("--data-limit", type=int, default=8 << 20, help="bytes of it that are read")
    text.add_argument("--sample", type=int, default=240, help="bytes that the trained model writes at the end")
    return parser.parse_args()


@torch.no_grad()
def validation_loss(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> float:
    """Every rank runs the same batches, so every rank has the whole answer."""
    losses = [float(next_byte_loss(model(inputs), targets)) for inputs, targets in batches]
    return sum(losses) / len(losses)


def training_step(
    model: nn.Module, optimizer: aliquot.AdamW, inputs: Tensor, targets: Tensor, watch: StopWatch
) -> float:
    with watch.part("forward"):
        loss = next_byte_loss(model(inputs), targets)
    with watch.part("backward"):
        loss.backward()
    with watch.part("optimizer step"):
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def train(
    args: argparse.Namespace, world: aliquot.World, model: nn.Module, text: Tensor, display: Display
) -> StopWatch:
    optimizer = aliquot.AdamW(
        model, lr=args.lr, betas=(0.9, 0.95), weight_decay=0.1, max_grad_norm=1.0, moment_bits=args.moment_bits
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_then_cosine(args.warmup, args.steps))
    training_text, validation_text = split(text)
    windows = Windows(training_text, args.batch, args.context, seed=args.seed * 10_007 + world.rank)
    held_out = Windows(validation_text, args.batch, args.context, seed=0)
    validation_batches = [held_out.draw() for _ in range(4)]
    tokens_per_step = args.batch * args.context * world.world_size
    watch, measured = StopWatch(), math.nan

    for step in range(1, args.steps + 1):
        with watch.part("data"):
            inputs, targets = windows.draw()
        loss = training_step(model, optimizer, inputs, targets, watch)
        scheduler.step()
        if step % args.validate_every == 0 or step in (1, args.steps):
            with watch.part("validation"):
                measured = validation_loss(model, validation_batches)
        with watch.part("display"):
            speed = step * tokens_per_step / watch.seconds("data", "forward", "backward", "optimizer step")
            figures = {
                "validation": f"{measured:.3f}",
                "gradient norm": f"{float(optimizer.grad_norm):.2f}",
                "tokens/s": f"{speed:,.0f}",
            }
            display.show(Report(step, loss, figures, aliquot.stats(model).bytes))
    return watch


def printable(text: bytes) -> str:
    """Bytes that a model chose may spell anything, also what would steer a terminal."""
    characters = text.decode("utf-8", "replace")
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in characters)


def main() -> None:
    args = parse_arguments()
    world = aliquot.init(transport=args.transport)
    console = Console(quiet=world.rank != 0)
    text = read_bytes(files_of(args.data) if args.data else standard_library(), args.data_limit).to(world.device)

    torch.manual_seed(args.seed)
    model: nn.Module = ByteLM(Shape(args.dim, args.layers, args.heads, args.context))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    console.print(
        f"{parameters:,} parameters, {len(text):,} bytes of text; stage {args.stage}, "
        f"{world.world_size} rank(s) by {world.transport}, {torch.get_num_threads()} thread(s) each; "
        "losses shown are rank 0's",
        soft_wrap=True,
    )
    model = aliquot.shard(model, stage=args.stage)
    with open_display(console, args.steps) as display:
        watch = train(args, world, model, text, display)

    with watch.part("sample"):
        sample = generate(model, b"def ", args.sample, args.context, seed=args.seed)
    console.rule("what the model writes")
    console.print(escape(printable(sample)), highlight=False)
    console.rule("what it took")
    stats = aliquot.stats(model)
    console.print(memory_table(stats.bytes, parameters, world.world_size), time_table(watch, stats.times))


if __name__ == "__main__":
    main()
