"""How long a rank's host takes to enqueue a step: what the library's own code adds to torch's."""

from __future__ import annotations

import time
from statistics import median

import torch
from contenders import Contender
from llama import next_token_loss
from torch import Tensor

from gpu.records import HostTimes

LENGTH = 16  # tokens: next to nothing to do for the GPU, so that the host is never held back by a full launch queue
STEPS, WARMUP = 10, 4


def host_times(contender: Contender, inputs: Tensor, targets: Tensor) -> HostTimes:
    """Medians over short steps, each part of which starts with an idle GPU."""
    inputs, targets = (tokens[:1, :LENGTH].contiguous() for tokens in (inputs, targets))
    for _ in range(WARMUP):
        _short_step(contender, inputs, targets)
    before = contender.hook_seconds() if contender.hook_seconds else None
    measured = [_short_step(contender, inputs, targets) for _ in range(STEPS)]
    after = contender.hook_seconds() if contender.hook_seconds else None
    hooks = tuple((b - a) / STEPS for a, b in zip(before, after, strict=True)) if before and after else None
    return HostTimes(*(median(part) for part in zip(*measured, strict=True)), hooks)


def _short_step(contender: Contender, inputs: Tensor, targets: Tensor) -> tuple[float, float, float, float]:
    start = _idle(inputs.device)
    loss = next_token_loss(contender.forward(inputs), targets)
    forward = time.perf_counter()
    forward_done = _idle(inputs.device)
    contender.backward(loss)
    backward = time.perf_counter()
    backward_done = _idle(inputs.device)
    contender.update()
    update = time.perf_counter()
    update_done = _idle(inputs.device)
    waited = (forward_done - forward) + (backward_done - backward) + (update_done - update)
    return forward - start, backward - forward_done, update - backward_done, waited


def _idle(device: torch.device) -> float:
    """Waits for the GPU; returns the instant at which it had nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
