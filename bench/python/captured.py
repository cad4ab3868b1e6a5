"""A training step as the host gives it, and the same replayed by a CUDA graph (`aliquot.graph`), in one run.

    CUBLAS_WORKSPACE_CONFIG=:4096:8 python bench/python/captured.py 374m 8x1024

and the same after `python -m torch.distributed.run --nproc-per-node N` for several ranks.

Beside them the floor, forward and backward of one GPU with nothing sharded and no optimizer, in the same two ways.
Stage 3, bf16, AdamW with clip. Verified before timed, with PyTorch's deterministic kernels: both give the same losses,
bit by bit. Times, with its usual ones, are medians, in ms.
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


def verify(size: str, tokens: Tensor) -> None:
    torch.use_deterministic_algorithms(True)
    step, _ = sharded_step(size)
    expected = [step(tokens) for _ in range(2 * WARMUP)]
    step, optimizer = sharded_step(size)
    replayed = aliquot.graph(step, optimizer, WARMUP)
    losses = [replayed(tokens) for _ in range(2 * WARMUP)]
    torch.use_deterministic_algorithms(False)
    if not torch.equal(torch.stack(losses), torch.stack(expected)):
        sys.exit(f"captured.py: replays gave other losses: {losses} instead of {expected}")


def timed(step: Step, tokens: Tensor) -> float:
    """Median milliseconds."""
    for _ in range(2 * WARMUP):
        step(tokens)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(STEPS + 1)]
    marks[0].record()
    for mark in marks[1:]:
        step(tokens)
        mark.record()
    torch.cuda.synchronize()
    return statistics.median(before.elapsed_time(after) for before, after in pairwise(marks))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("tokens", help="micro-batch x sequence, such as 8x1024")
    args = parser.parse_args()
    world = aliquot.init(transport="peer")
    batch, length = map(int, args.tokens.split("x"))
    tokens = torch.randint(SIZES[args.size].vocabulary, (batch, length + 1), device=world.device)
    verify(args.size, tokens)
    found = {}
    floor = floor_step(args.size, world.device)
    found["floor"] = timed(floor, tokens)
    found["floor, captured"] = timed(captured_floor(floor, tokens), tokens)
    del floor
    torch.cuda.empty_cache()
    step, optimizer = sharded_step(args.size)
    found["aliquot"] = timed(step, tokens)
    found["aliquot, captured"] = timed(aliquot.graph(step, optimizer, WARMUP), tokens)
    if world.rank == 0:
        for name, milliseconds in found.items():
            ratio = milliseconds / found["floor" + ", captured" * name.endswith("captured")]
            print(f"{name:20s} {milliseconds:8.2f} ms  {ratio:5.2f} x the floor in the same way")


if __name__ == "__main__":
    main()
