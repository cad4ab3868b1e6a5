"""What ranks tell one another about a checkpoint. It must work beside training, in a thread of its own: so not over the
model's communicator, but over the store that the ranks met at."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import Any

from torch._C._distributed_c10d import Store

from aliquot._core import CheckpointError, Error
from aliquot.world import World

FIRST_PAUSE = 0.001
LONGEST_PAUSE = 0.02
LONGEST = 4096
"""Characters of an error that is told."""


def gather(world: World, name: str, payload: bytes, timeout: float | None = None) -> list[bytes]:
    """Every rank's payload in rank order on rank 0, nothing elsewhere. `name` is new each time, alike on all ranks."""
    if world.store is None:
        return [payload]
    keys = [f"{name}/{rank}" for rank in range(world.world_size)]
    _put(world.store, keys[world.rank], payload)
    return _collected(world, world.store, keys, timeout) if world.rank == 0 else []


def broadcast(world: World, name: str, payload: bytes, timeout: float | None = None) -> bytes:
    """Rank 0's payload. Rank 0 returns when all ranks have it."""
    if world.store is None:
        return payload
    store = world.store
    if world.rank == 0:
        _put(store, name, payload)
        _collected(world, store, [f"{name}/{rank}" for rank in range(1, world.world_size)], timeout)
        store.delete_key(name)
        return payload
    _await(world, store, name, 0, timeout)
    payload = store.get(name)
    _put(store, f"{name}/{world.rank}", b"")
    return payload


def exchange(world: World, name: str, payload: bytes, timeout: float | None = None) -> list[bytes]:
    """Every rank's payload in rank order, on every rank."""
    parts = gather(world, f"{name}/in", payload, timeout)
    sizes = b",".join(str(len(part)).encode() for part in parts)
    joined = broadcast(world, f"{name}/out", sizes + b"\n" + b"".join(parts), timeout)
    head, _, body = joined.partition(b"\n")
    return list(_cut(body, map(int, head.split(b","))))


def _cut(body: bytes, sizes: Iterable[int]) -> Iterable[bytes]:
    begin = 0
    for size in sizes:
        yield body[begin : begin + size]
        begin += size


def _put(store: Store, key: str, payload: bytes) -> None:
    store.set(key, payload)  # type: ignore[arg-type]  # takes bytes, whatever its stub says


def _collected(world: World, store: Store, keys: list[str], timeout: float | None) -> list[bytes]:
    parts = []
    for key in keys:
        _await(world, store, key, int(key.rpartition("/")[2]), timeout)
        parts.append(store.get(key))
        store.delete_key(key)
    return parts


def _await(world: World, store: Store, key: str, rank: int, timeout: float | None) -> None:
    """Asks again and again: a wait within the store could be neither interrupted nor shared with other threads."""
    limit = world.timeout if timeout is None else timeout
    deadline = time.monotonic() + limit
    pause = FIRST_PAUSE
    while not store.check([key]):
        if time.monotonic() > deadline:
            raise CheckpointError(f"rank {world.rank}: rank {rank} said nothing of the checkpoint for {limit:.0f} s")
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
