"""Hybrid sharding (HSDP): groups of ranks that each hold a whole model, sharded inside the group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from aliquot import _core
from aliquot._core import InvalidArgument
from aliquot.subsets import counterparts, neighbours, ranks_per_host
from aliquot.world import World

Replicas = int | Literal["hosts"]
"""How many groups; `"hosts"`: each host is one."""


@dataclass(frozen=True)
class ReplicaGroup:
    """The group that this rank is in."""

    count: int
    """How many groups there are."""
    shards: _core.Communicator
    """Joins the ranks of the group, over which the model is sharded."""
    counterparts: _core.Communicator | None
    """Joins the ranks that hold the same shards, one of each group; None where there is one group."""


def group_count(world: World, replicas: Replicas) -> int:
    """How many groups that makes. Refuses what can't be."""
    if replicas == "hosts":
        size = ranks_per_host(world.subsets.hosts)
        if size is None:
            raise InvalidArgument(
                'replicas="hosts" needs as many ranks on each host, neighbours in the order of ranks; they are on '
                f"{list(world.subsets.hosts)}"
            )
        count = world.world_size // size
    elif isinstance(replicas, int) and not isinstance(replicas, bool) and replicas >= 1:
        count = replicas
    else:
        raise InvalidArgument(f'replicas is {replicas!r}; it is the number of groups of ranks, or "hosts"')
    if world.world_size % count:
        raise InvalidArgument(f"replicas is {count}, and {world.world_size} ranks make no {count} groups of one size")
    return count


def replica_group(world: World, count: int) -> ReplicaGroup:
    """Where there are `count` groups of neighbours. Collective the first time."""
    if count == 1:
        return ReplicaGroup(count, world.communicator, None)
    size = world.world_size // count
    shards = world.subsets.communicator(neighbours(world.rank, size))
    same = world.subsets.communicator(counterparts(world.rank, size, world.world_size))
    return ReplicaGroup(count, shards, same)
