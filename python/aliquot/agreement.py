"""Whether all ranks do the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

import torch

from aliquot import _core
from aliquot._core import CommunicatorError

if TYPE_CHECKING:
    from aliquot.world import World


def versions() -> list[str]:
    """What the ranks must have alike before anything else."""
    return [f"aliquot {_core.__version__}", f"torch {torch.__version__}"]


def require_agreement(world: World, what: str, lines: Iterable[str]) -> None:
    """Raises an error on every rank that quotes the first line in which ranks differ. Collective.

    What is compared at first is a digest, by the communicator: it would notice ranks that do something else now.
    """
    mine = list(lines)
    digest = hashlib.sha256("\n".join(mine).encode()).digest()
    if world.communicator.all_gather("model digest", digest) != digest * world.world_size:
        require_same(world.control, what, mine, world.timeout)


def require_same(control: _core.ControlChannel, what: str, lines: Sequence[str], timeout: float) -> None:
    """The same, before there is a communicator."""
    texts = control.all_gather("agreement", "\n".join(lines).encode(), timeout)
    first, *others = (text.decode().split("\n") for text in texts)
    for rank, theirs in enumerate(others, 1):
        for expected, found in zip_longest(first, theirs, fillvalue="nothing more"):
            if expected != found:
                raise CommunicatorError(
                    f"ranks {what}: rank 0 has '{expected}', rank {rank} has '{found}'. "
                    "Do the same with the same arguments on every rank"
                )
