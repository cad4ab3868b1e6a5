"""How many threads a rank writes and reads files with."""

from __future__ import annotations

import os

from aliquot.world import World

LEAST = 2
"""One computes checksums while the other waits for the disk."""
MOST = 8
"""More are of no use to one file."""


def file_threads(world: World) -> int:
    """The rank's share of its host's cores: not what launchers leave it for kernels, as the threads mostly wait."""
    mates = world.subsets.hosts.count(world.subsets.hosts[world.rank])
    share = min((os.cpu_count() or 1) // mates, len(os.sched_getaffinity(0)))
    return max(LEAST, min(share, MOST))
