"""How each library saves and loads what its contender (gpu/contenders.py) trains.

Imports stand inside the functions so that no contender's process pays for another's library.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from contenders import Contender

Wait = Callable[[], object]


@dataclass(frozen=True)
class Saver:
    """`behind` begins a save behind training and returns what waits for its end; None: the library has none."""

    save: Callable[[Path], object]
    load: Callable[[Path], object]
    behind: Callable[[Path], Wait] | None = None


def aliquot(contender: Contender) -> Saver:
    import aliquot
    from aliquot.sharded import sharded

    model, optimizer = contender.trained

    def behind(folder: Path) -> Wait:
        aliquot.save_checkpoint(folder, model, optimizer, step=1, wait=False)
        return sharded(model).world.background.settle

    return Saver(
        lambda folder: aliquot.save_checkpoint(folder, model, optimizer, step=1),
        lambda folder: aliquot.load_checkpoint(folder, model, optimizer),
        behind,
    )


def dcp(contender: Contender) -> Saver:
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    model, optimizer = contender.trained

    def states() -> dict[str, Any]:
        of_model, of_optimizer = get_state_dict(model, optimizer)
        return {"model": of_model, "optimizer": of_optimizer}

    def load(folder: Path) -> None:
        found = states()
        checkpoint.load(found, checkpoint_id=folder)
        set_state_dict(model, optimizer, model_state_dict=found["model"], optim_state_dict=found["optimizer"])

    def behind(folder: Path) -> Wait:
        return checkpoint.async_save(states(), checkpoint_id=folder).result

    return Saver(lambda folder: checkpoint.save(states(), checkpoint_id=folder), load, behind)


def deepspeed(contender: Contender) -> Saver:
    engine, _ = contender.trained
    return Saver(engine.save_checkpoint, engine.load_checkpoint)


SAVERS: dict[str, tuple[str, Callable[[Contender], Saver]]] = {
    "aliquot": ("aliquot-3", aliquot),
    "dcp": ("fsdp2", dcp),
    "deepspeed": ("deepspeed-3", deepspeed),
}
"""By name: the contender that trains, and what saves it."""


def installed() -> tuple[str, ...]:
    return tuple(name for name in SAVERS if name == "dcp" or find_spec(name) is not None)
