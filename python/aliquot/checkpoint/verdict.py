"""What ranks tell one another about a checkpoint. It must work beside training, in a thread of its own: so not over the
model's communicator, but over the control channel."""

from __future__ import annotations

import json
from typing import Any

from aliquot._core import CheckpointError, Error
from aliquot.world import World

LONGEST = 4096
"""Characters of an error that is told."""


def exchange(world: World, name: str, payload: bytes) -> list[bytes]:
    """Every rank's payload in rank order, on every rank. `name` is a new one each time, alike on all ranks.

    Raises PeerLost if a rank is gone, CommunicatorError if one says nothing until the world's timeout.
    """
    return world.control.all_gather(name, payload, world.timeout)


def agree(world: World, name: str, mine: dict[str, Any], problem: str) -> list[dict[str, Any]]:
    """What each rank says; raises an error, the same on every rank, if one has a problem.

    `mine["call"]` is what all ranks must have alike.
    """
    said = exchange(world, name, json.dumps(mine | {"problem": problem}).encode())
    answers: list[dict[str, Any]] = [json.loads(answer) for answer in said]
    if problem := next(filter(None, (answer["problem"] for answer in answers)), ""):
        raise CheckpointError(problem)
    for rank, answer in enumerate(answers):
        if answer["call"] != answers[0]["call"]:
            raise CheckpointError(
                f"ranks disagree about a checkpoint: rank 0 calls {answers[0]['call']}, rank {rank} {answer['call']}. "
                "Do the same with the same arguments on every rank"
            )
    return answers


def problem_of(world: World, error: BaseException) -> str:
    """What the other ranks are told of an error of this one."""
    kind = "" if isinstance(error, Error) else f"{type(error).__name__}: "
    return f"rank {world.rank}: {kind}{error}"[:LONGEST]
