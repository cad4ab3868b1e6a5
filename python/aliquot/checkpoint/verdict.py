"""What ranks tell one another about a checkpoint. It must work beside training, in a thread of its own: so not over the
model's communicator, but over the control channel."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from typing import Any

from aliquot._core import CheckpointError, CommunicatorError, Error, PeerLost
from aliquot.world import World

logger = logging.getLogger("aliquot")

REMINDER_SECONDS = 5.0
LARGEST = 64 << 20
"""Bytes that a rank may tell at a time (ControlChannel)."""
LONGEST = 4096
"""Characters of an error that is told."""


def exchange(world: World, name: str, payload: bytes) -> list[bytes]:
    """Every rank's payload in rank order, on every rank. `name` is a new one each time, alike on all ranks.

    Raises PeerLost if a rank is gone, CommunicatorError if one says nothing until the world's timeout.
    """
    return world.control.all_gather(name, payload, world.timeout)


def told(world: World, content: Mapping[str, Any]) -> bytes:
    """`content` as ranks tell it, or, if that is too much, that it is."""
    text = json.dumps(content, default=repr).encode()
    if len(text) <= LARGEST:
        return text
    problem = f"rank {world.rank}: its states (loader, schedulers, extra) take {len(text)} bytes, {LARGEST} at most"
    return json.dumps({"call": content.get("call"), "problem": problem}, default=repr).encode()


def agree(world: World, name: str, mine: dict[str, Any], problem: str) -> list[dict[str, Any]]:
    """What each rank says; raises an error, the same on every rank, if one has a problem.

    `mine["call"]` is what all ranks must have alike. Ranks that have gone on to train would never hear the control
    channel ask: so they meet on the model's communicator first, which notices ranks that do something else.
    """
    everyone = f"every rank must call {mine['call'][0]}, with the same arguments"
    reminder = threading.Timer(REMINDER_SECONDS, logger.warning, ("rank %d waits for others: %s", world.rank, everyone))
    reminder.daemon = True
    reminder.start()
    try:
        world.communicator.barrier("checkpoint")
        said = exchange(world, name, told(world, mine | {"problem": problem}))
    except PeerLost:
        raise
    except CommunicatorError as error:
        raise CommunicatorError(f"{error}; {everyone}") from None
    finally:
        reminder.cancel()
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
