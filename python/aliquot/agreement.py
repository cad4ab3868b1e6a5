"""Whether all ranks do the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from itertools import zip_longest

from aliquot import _core
from aliquot._core import CommunicatorError

LENGTH = 1 << 20


def require_agreement(communicator: _core.Communicator, what: str, lines: Iterable[str]) -> None:
    """Raises an error that quotes the first line in which ranks differ. Collective."""
    mine = list(lines)
    digest = hashlib.sha256("\n".join(mine).encode()).digest()
    digests = communicator.all_gather("model digest", digest)
    if digests == digest * communicator.world_size:
        return
    for rank, theirs in enumerate(_texts(communicator, mine)):
        for ours, other in zip_longest(mine, theirs, fillvalue="nothing more"):
            if ours != other:
                raise CommunicatorError(
                    f"ranks {what}: rank {communicator.rank} has '{ours}', rank {rank} has '{other}'. "
                    "Do the same with the same arguments on every rank"
                )


def _texts(communicator: _core.Communicator, mine: list[str]) -> list[list[str]]:
    text = "\n".join(mine).encode()[:LENGTH].ljust(LENGTH)
    whole = communicator.all_gather("model description", text)
    return [whole[i : i + LENGTH].decode(errors="replace").rstrip().split("\n") for i in range(0, len(whole), LENGTH)]
