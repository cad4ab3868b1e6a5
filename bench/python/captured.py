"""A training step as the host gives it, and the same replayed by a CUDA graph (`aliquot.graph`), in one run.

    python -m torch.distributed.run --nproc-per-node 2 bench/python/captured.py 374m 8x1024

Beside them the floor, forward and backward of one GPU with nothing sharded and no optimizer, in the same two ways.
Stage 3, bf16, AdamW with clip. Verified before timed: both give the same losses, bit by bit. Times are medians, in ms.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from itertools import pairwise

import aliquot
import torch
from llama import SIZES, Llama, next_token_loss
from seeded import materialise
from torch import Tensor

STEPS = 20
WARMUP = 3
Step = Callable[[Tensor], Tensor]


def sharded_step(size: str) -> tuple[Step, aliquot.AdamW]:
    with torch.device("meta"):
        model = Llama(SIZES[size], 1)
    aliquot.shard(model, precision="bf16")
    optimizer = aliquot.AdamW(model, lr=1e-4, max_grad_norm=1.0)

    def step(tokens: Tensor) -> Tensor:
        loss = next_token_loss(model(tokens[:, :-1]), tokens[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step, optimizer


def floor_step(size: str, device: torch.device) -> Step:
    with torch.device("meta"):
        model = Llama(SIZES[size], 1).to(torch.bfloat16)
    materialise(model, device)

    def step(tokens: Tensor) -> Tensor:
        model.zero_grad()
        loss = next_token_loss(model(tokens[:, :-1]), tokens[:, 1:])
        loss.backward()
        return loss.detach()

    return step


def captured_floor(step: Step, tokens: Tensor) -> Step:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(WARMUP):
            step(tokens)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        loss = step(tokens)

    def replay(_: Tensor) -> Tensor:
        graph.replay()
        return loss

    return replay


def timed(step: Step, tokens: Tensor) -> tuple[float, Tensor]:
    """Median milliseconds, and the losses, warm-up included."""
    losses = [step(tokens).clone() for _ in range(WARMUP + 2)]
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(STEPS + 1)]
    marks[0].record()
    for mark in marks[1:]:
        losses.append(step(tokens).clone())
        mark.record()
    torch.cuda.synchronize()
    times = [before.elapsed_time(after) for before, after in pairwise(marks)]
    return statistics.median(times), torch.stack(losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("tokens", help="micro-batch x sequence, such as 8x1024")
    args = parser.parse_args()
    world = aliquot.init(transport="peer")
    batch, length = map(int, args.tokens.split("x"))
    tokens = torch.randint(SIZES[args.size].vocabulary, (batch, length + 1), device=world.device)
    found = {}
    floor = floor_step(args.size, world.device)
    found["floor"], _ = timed(floor, tokens)
    found["floor, captured"], _ = timed(captured_floor(floor, tokens), tokens)
    del floor
    torch.cuda.empty_cache()
    step, _ = sharded_step(args.size)
    found["aliquot"], expected = timed(step, tokens)
    del step
    step, optimizer = sharded_step(args.size)
    found["aliquot, captured"], losses = timed(aliquot.graph(step, optimizer, WARMUP), tokens)
    if not torch.equal(losses, expected):
        sys.exit(f"captured.py: replays gave other losses: {losses} instead of {expected}")
    if world.rank == 0:
        for name, milliseconds in found.items():
            ratio = milliseconds / found["floor" + ", captured" * name.endswith("captured")]
            print(f"{name:20s} {milliseconds:8.2f} ms  {ratio:5.2f} x the floor in the same way")


if __name__ == "__main__":
    main()
