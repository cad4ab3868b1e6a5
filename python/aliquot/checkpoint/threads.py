"""How many threads a rank writes and reads files with."""

from __future__ import annotations

import os

from aliquot import _core
from aliquot.world import World

MOST = 8
"""More are of no use to one file."""


def file_threads(world: World) -> int:
    """The rank's share of its host's cores: not what launchers leave it for kernels, as the threads mostly wait."""
    share = min((os.cpu_count() or 1) // ranks_here(world), len(os.sched_getaffinity(0)))
    return max(_core.usual_file_threads, min(share, MOST))


def ranks_here(world: World) -> int:
    """How many ranks this one's host has."""
    return world.subsets.hosts.count(world.subsets.hosts[world.rank])
