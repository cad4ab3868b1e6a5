"""Values that a load has read, on their way to where the rank keeps them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from aliquot import _core
from aliquot.checkpoint.parts import Memory
from aliquot.checkpoint.threads import file_threads
from aliquot.world import World


class Putting:
    """Puts values when a load may not fail any more: what that takes of a device is there from the beginning."""

    def __init__(self, world: World) -> None:
        self._device = world.device
        on_gpu = world.device.type == "cuda"
        self._putter = _core.ValuePutter(world.gpu if on_gpu else -1, file_threads(world))

    def put(self, values: Iterable[tuple[Memory, Tensor]]) -> None:
        """Overwrites the elements of each memory; as many as can be go together, by several threads."""
        together = []
        for memory, given in values:
            if memory.is_put_as(given):
                together.append((given, memory.numbers()))
            else:
                memory.take(given)
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()  # threads have streams of their own
        self._putter.put([place.given(value) for value, place in together])
