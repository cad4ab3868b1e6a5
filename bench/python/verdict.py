"""Do the contenders train the same model? A time is worth nothing before that is known."""

from __future__ import annotations

from collections.abc import Sequence

from records import Run

# Adam's first steps are about the sign of the gradient, so rounding grows: losses are held to 1e-3, the first to 1e-5.
FIRST_LOSS, LOSSES, GRAD_NORMS = 1e-5, 1e-3, 1e-3
STEPS = 3


class DisagreementError(Exception):
    """Two contenders did not compute the same thing."""


def check_start(name: str, run: Run, reference_name: str, reference: Run) -> None:
    """Rank 0 starts from the same weights and windows in every contender, whatever the number of ranks."""
    _compare(
        "rank 0's first loss", FIRST_LOSS, name, run.ranks[0].losses[:1], reference_name, reference.ranks[0].losses
    )


def check_curve(name: str, run: Run, reference_name: str, reference: Run) -> None:
    """Contenders with the same ranks see the same batches, so their first steps agree: losses and gradient norms."""
    _compare("losses", LOSSES, name, run.losses[:STEPS], reference_name, reference.losses)
    for rank, (mine, theirs) in enumerate(zip(run.ranks, reference.ranks, strict=True)):
        norms = mine.grad_norms[:STEPS]
        _compare(f"rank {rank}'s gradient norms", GRAD_NORMS, name, norms, reference_name, theirs.grad_norms)


def _compare(
    what: str, tolerance: float, name: str, values: Sequence[float], reference_name: str, expected: Sequence[float]
) -> None:
    for step, (value, wanted) in enumerate(zip(values, expected, strict=False)):
        if not abs(value - wanted) <= tolerance * abs(wanted):
            raise DisagreementError(
                f"{what} at step {step}: {name} {value:.7g}, {reference_name} {wanted:.7g}, more than {tolerance:g} "
                "apart. They do not train the same model, so no times are reported."
            )
