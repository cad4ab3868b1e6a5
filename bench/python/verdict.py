"""Do the contenders train the same model? A time is worth nothing before that is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

STEPS = 3


@dataclass(frozen=True)
class Tolerance:
    """Largest relative differences. Adam's first steps are about the sign of the gradient, so rounding grows."""

    first_loss: float
    losses: float
    grad_norms: float


FP32 = Tolerance(first_loss=1e-5, losses=1e-3, grad_norms=1e-3)
BF16 = Tolerance(first_loss=3e-3, losses=1e-2, grad_norms=5e-2)


class TrainedRank(Protocol):
    @property
    def losses(self) -> Sequence[float]: ...
    @property
    def grad_norms(self) -> Sequence[float]: ...


class Trained(Protocol):
    """The ranks of one contender, and the mean of their losses."""

    @property
    def ranks(self) -> Sequence[TrainedRank]: ...
    @property
    def losses(self) -> Sequence[float]: ...


class DisagreementError(Exception):
    """Two contenders did not compute the same thing."""


def check_start(name: str, run: Trained, reference_name: str, reference: Trained, tolerance: Tolerance = FP32) -> None:
    """Rank 0 starts from the same weights and windows in every contender, whatever the number of ranks."""
    mine, theirs = run.ranks[0].losses[:1], reference.ranks[0].losses
    _compare("rank 0's first loss", tolerance.first_loss, name, mine, reference_name, theirs)


def check_curve(name: str, run: Trained, reference_name: str, reference: Trained, tolerance: Tolerance = FP32) -> None:
    """Contenders with the same ranks see the same batches, so their first steps agree: losses and gradient norms."""
    _compare("losses", tolerance.losses, name, run.losses[:STEPS], reference_name, reference.losses)
    for rank, (mine, theirs) in enumerate(zip(run.ranks, reference.ranks, strict=True)):
        what, norms = f"rank {rank}'s gradient norms", mine.grad_norms[:STEPS]
        _compare(what, tolerance.grad_norms, name, norms, reference_name, theirs.grad_norms)


def _compare(
    what: str, tolerance: float, name: str, values: Sequence[float], reference_name: str, expected: Sequence[float]
) -> None:
    for step, (value, wanted) in enumerate(zip(values, expected, strict=False)):
        if not abs(value - wanted) <= tolerance * abs(wanted):
            raise DisagreementError(
                f"{what} at step {step}: {name} {value:.7g}, {reference_name} {wanted:.7g}, more than {tolerance:g} "
                "apart. They do not train the same model, so no times are reported."
            )
