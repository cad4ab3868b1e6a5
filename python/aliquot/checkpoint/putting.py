"""Values that a load has read, on their way to where the rank keeps them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from aliquot import _core
from aliquot.checkpoint.parts import Memory
from aliquot.checkpoint.threads import file_threads
from aliquot.world import World


def put_all(values: Iterable[tuple[Memory, Tensor]], world: World) -> None:
    """Overwrites the elements of each memory. To a device they go together, by several threads."""
    together = []
    for memory, given in values:
        if memory.is_put_as(given):
            together.append((given, memory.numbers()))
        else:
            memory.take(given)
    if together:
        torch.cuda.current_stream(world.device).synchronize()  # threads have streams of their own
        _core.put_values([place.given(value) for value, place in together], world.gpu, file_threads(world))
