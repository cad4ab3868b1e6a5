"""The states of random number generators that a rank draws from."""

from __future__ import annotations

import random
import sys
from typing import Any

import torch

from aliquot.world import World


def rng_states(world: World) -> dict[str, Any]:
    """Of Python, torch on the CPU, this rank's GPU, and NumPy where it is imported."""
    states: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if world.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(world.device)
    if numpy := sys.modules.get("numpy"):
        name, keys, *rest = numpy.random.get_state(legacy=True)
        states["numpy"] = (name, keys.tobytes(), *rest)
    return states


def set_rng_states(world: World, states: dict[str, Any]) -> None:
    """Those that are there; a GPU's only where this rank has one."""
    random.setstate(states["python"])
    torch.set_rng_state(states["torch"])
    if world.device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], world.device)
    if "numpy" in states:
        import numpy

        name, keys, *rest = states["numpy"]
        numpy.random.set_state((name, numpy.frombuffer(keys, dtype=numpy.uint32), *rest))
