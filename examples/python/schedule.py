"""Learning rates over a run."""

from __future__ import annotations

import math
from collections.abc import Callable


def warmup_then_cosine(warmup: int, steps: int, floor: float = 0.1) -> Callable[[int], float]:
    """Factor of the peak learning rate: rises linearly, then falls along half a cosine to `floor`."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, steps - warmup))
        return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2

    return factor
