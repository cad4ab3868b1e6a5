"""The demo's model on its real text, with AdamW's moments in 32 bits and in 8: validation losses as a Markdown table.

PYTHONPATH=examples/python python bench/python/moment_bits.py
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import aliquot
import torch
from byte_lm import ByteLM, Shape, next_byte_loss
from byte_text import Windows, read_bytes, split, standard_library
from schedule import warmup_then_cosine
from torch import Tensor, nn

SHAPE = Shape()
BATCH = 8
TEXT_BYTES = 8 << 20


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--every", type=int, default=50, help="steps between validations")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    return parser.parse_args()


@torch.no_grad()
def validation_loss(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> float:
    return sum(next_byte_loss(model(inputs), targets).item() for inputs, targets in batches) / len(batches)


def train(text: Tensor, bits: int, seed: int, steps: int, every: int) -> Iterator[float]:
    """Validation losses, and at last the moments' bytes a parameter."""
    torch.manual_seed(seed)
    model: nn.Module = ByteLM(SHAPE)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    model = aliquot.shard(model, stage=0)
    optimizer = aliquot.AdamW(model, lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1, max_grad_norm=1.0, moment_bits=bits)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_then_cosine(20, steps))
    training_text, validation_text = split(text)
    windows = Windows(training_text, BATCH, SHAPE.context, seed)
    held_out = Windows(validation_text, BATCH, SHAPE.context, seed=0)
    batches = [held_out.draw() for _ in range(8)]
    for step in range(1, steps + 1):
        inputs, targets = windows.draw()
        next_byte_loss(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        if step % every == 0:
            yield validation_loss(model, batches)
    held = aliquot.stats(model).bytes
    yield (held["exp_avg"] + held["exp_avg_sq"]) / parameters


def main() -> None:
    args = parse_arguments()
    aliquot.init()
    text = read_bytes(standard_library(), TEXT_BYTES)
    runs = {
        f"{bits} bits, seed {seed}": list(train(text, bits, seed, args.steps, args.every))
        for seed in args.seeds
        for bits in (32, 8)
    }
    print(f"| validation loss after | {' | '.join(runs)} |")
    print("|---" * (len(runs) + 1) + "|")
    for row, step in enumerate(range(args.every, args.steps + 1, args.every)):
        print(f"| {step} steps | {' | '.join(f'{run[row]:.4f}' for run in runs.values())} |")
    print(f"| moments, bytes per parameter | {' | '.join(f'{run[-1]:.3f}' for run in runs.values())} |")


if __name__ == "__main__":
    main()
