"""Where the bytes are and where the time goes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from aliquot.sharded import sharded


@dataclass(frozen=True)
class Stats:
    """Of this rank, since the model was sharded."""

    bytes: dict[str, int]
    """Held by role: `param`, `master`, `grad`, and the states of the fused optimizer (`exp_avg`, `momentum_buffer`, and
    others; of 8 bits with their scales); `slot`: full units; `outbox`: full gradients on their way to their owners."""
    times: dict[str, float]
    """Host seconds: `gather` and `reduce` waiting and copying (on a GPU: giving work to streams), `step` in the
    optimizer; `forward` and `backward` in the hooks of modules and of autograd, gathers and reduces included."""
    gathers: int
    gathered_bytes: int
    reduces: int
    reduced_bytes: int
    """Of these and of `times`, replays of `aliquot.graph` are not counted."""
    steps: int
    skipped: int
    """Steps that changed nothing because a gradient was not finite."""


def stats(model: nn.Module) -> Stats:
    """What the sharded model holds and has done on this rank."""
    state = sharded(model)
    found = state.engine.statistics()
    hooks = {"forward": state.passes.forward_clock.seconds, "backward": state.passes.backward_clock.seconds}
    return Stats(
        bytes=found.bytes, times=found.times | hooks, gathers=found.gathers, gathered_bytes=found.gathered_bytes,
        reduces=found.reduces, reduced_bytes=found.reduced_bytes, steps=found.steps, skipped=found.skipped,
    )  # fmt: skip
