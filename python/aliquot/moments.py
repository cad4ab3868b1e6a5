"""AdamW of one flat piece, written with torch's operations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass
class Moments:
    """What `torch.optim.AdamW` keeps of a parameter."""

    exp_avg: Tensor
    exp_avg_sq: Tensor
    steps: int = 0

    def step(self, value: Tensor, gradient: Tensor, group: Mapping[str, Any]) -> None:
        """Its update of `value`, with the hyperparameters of `group`."""
        beta1, beta2 = group["betas"]
        self.steps += 1
        self.exp_avg.lerp_(gradient, 1 - beta1)
        self.exp_avg_sq.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = self.exp_avg_sq.sqrt().div_(math.sqrt(1 - beta2**self.steps)).add_(group["eps"])
        value.mul_(1 - group["lr"] * group["weight_decay"])
        value.addcdiv_(self.exp_avg, root, value=-group["lr"] / (1 - beta1**self.steps))
