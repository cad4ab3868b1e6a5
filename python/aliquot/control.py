"""What a training loop says to a sharded model beside forward, backward and step."""

from __future__ import annotations

from contextlib import AbstractContextManager

from torch import nn

from aliquot.passes import unsynchronized
from aliquot.sharded import sharded


def no_sync(model: nn.Module) -> AbstractContextManager[None]:
    """Within it, backwards accumulate on each rank without reducing; the next one outside reduces the sum.

    At any stage a full gradient is held meanwhile.
    """
    return unsynchronized(sharded(model).passes)


def reset_step(model: nn.Module) -> None:
    """After an exception in forward or backward: gives everything back, as if the step had not begun.

    Gradients since the last `zero_grad` are given up. Every rank calls it; on one-sided transports peers that wait for
    this rank's gradients get a CommunicatorError first; with replicas, so do those of other groups, and it waits until
    they have come to the end of their backward. On the others all ranks must have come to the same place: one
    that resets alone ends in an error that says where the ranks differ, unless, on `peer`, it has not yet reduced
    anything since the last `zero_grad`.
    """
    sharded(model).passes.give_up("step reset")
