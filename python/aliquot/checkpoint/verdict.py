"""What ranks tell one another about a checkpoint. It must work beside training, in a thread of its own: so not over the
model's communicator, but over the store that the ranks met at."""

from __future__ import annotations

import json
import time
from typing import Any

from torch._C._distributed_c10d import Store
from torch.distributed import DistNetworkError

from aliquot._core import CheckpointError, CommunicatorError, Error
from aliquot.world import World

FIRST_PAUSE = 0.001
LONGEST_PAUSE = 0.02
DYING_TIME = 1.0
LONGEST = 4096
"""Characters of an error that is told."""


def exchange(world: World, name: str, payload: bytes) -> list[bytes]:
    """Every rank's payload in rank order, on every rank. `name` is a new one each time, alike on all ranks.

    Raises PeerLost if a rank is gone, CheckpointError if one says nothing until the world's timeout.
    """
    if world.store is None:
        return [payload]
    try:
        return _exchange(world, world.store, name, payload)
    except DistNetworkError as error:
        deadline = time.monotonic() + DYING_TIME
        while time.monotonic() < deadline:  # whoever served the store may be seen to be gone a little later
            world.communicator.require_intact()
            time.sleep(LONGEST_PAUSE)
        raise CommunicatorError(f"rank {world.rank}: the store that the ranks met at is gone: {error}") from None


def _exchange(world: World, store: Store, name: str, payload: bytes) -> list[bytes]:
    keys = [f"{name}/{rank}" for rank in range(world.world_size)]
    heard = [f"{key}/heard" for key in keys]
    store.set(keys[world.rank], payload)  # type: ignore[arg-type]  # takes bytes, whatever its stub says
    said = []
    for rank, key in enumerate(keys):
        _await(world, store, key, rank)
        said.append(store.get(key))
    store.set(heard[world.rank], "")
    if world.rank == 0:  # may serve the store: it goes last, and tidies up
        for rank, key in enumerate(heard):
            _await(world, store, key, rank)
        for key in keys + heard:
            store.delete_key(key)
    return said


def _await(world: World, store: Store, key: str, rank: int) -> None:
    """Asks again and again: a wait within the store could be neither interrupted nor shared with other threads."""
    deadline = time.monotonic() + world.timeout
    pause = FIRST_PAUSE
    while not store.check([key]):
        world.communicator.require_intact()
        if time.monotonic() > deadline:
            raise CheckpointError(
                f"rank {world.rank}: rank {rank} has said nothing of the checkpoint for {world.timeout:.0f} s"
            )
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


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
