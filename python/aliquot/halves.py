"""fp32 values that lie in two halves (docs/design.md, "The split master"), for what steps them with torch."""

from __future__ import annotations

from dataclasses import dataclass

import torch

HALF_A_UNIT = 1 << 15
"""Of the parameter's last place, in the bits of the fp32 value."""


@dataclass(eq=False)
class Halves:
    """Flat, of one length, and the store's own memory. As `split_master.h` has it, to the bit."""

    high: torch.Tensor
    """bf16: the parameter, which is the value rounded."""
    low: torch.Tensor
    """int16: the bits that it lacks."""

    def joined(self) -> torch.Tensor:
        """A copy of the values."""
        low = self.low.int() & 0xFFFF
        rounded_up = low >> 15
        return (((self.high.view(torch.int16).int() - rounded_up) << 16) | low).view(torch.float32)

    def split(self, values: torch.Tensor) -> None:
        """Keeps the values."""
        bits = values.detach().view(torch.int32)
        self.high.view(torch.int16).copy_((bits + HALF_A_UNIT) >> 16)
        self.low.copy_(bits)
