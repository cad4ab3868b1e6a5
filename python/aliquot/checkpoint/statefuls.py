"""Objects of the user that say where they are and go on from there: schedulers, a loader, a scaler."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from aliquot._core import CheckpointError
from aliquot.checkpoint.plain import unplain
from aliquot.scaler import GradScaler
from aliquot.world import World

if TYPE_CHECKING:
    from aliquot.checkpoint.manifest import Manifest


class Stateful(Protocol):
    """A scheduler of learning rates, or a loader of data."""

    def state_dict(self) -> Any:
        """What it takes to go on."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Goes on from there."""


Statefuls = Stateful | Iterable[Stateful] | None


def listed(given: Statefuls) -> list[Stateful]:
    """One, several or none."""
    if isinstance(given, Mapping):
        raise CheckpointError(f"schedulers is a {type(given).__name__}; it is one scheduler, or several in a list")
    found = [] if given is None else list(given) if isinstance(given, Iterable) else [given]
    for number, each in enumerate(found):
        require_stateful(each, f"schedulers[{number}]", "a scheduler of torch.optim.lr_scheduler")
    return found


def require_stateful(given: Any, name: str, example: str) -> None:
    """Refuses what can't say where it is, or go on from there."""
    for method in ("state_dict", "load_state_dict"):
        if not callable(getattr(given, method, None)):
            raise CheckpointError(
                f"{name} is a {type(given).__name__}, which has no {method}; it takes what has, such as {example}"
            )


def require_kinds(loader: Stateful | None, scaler: GradScaler | None) -> None:
    """Refuses a loader that keeps no place, and torch's own scaler."""
    if loader is not None:
        require_stateful(loader, "loader", "torchdata.stateful_dataloader.StatefulDataLoader")
    if not isinstance(scaler, GradScaler | None):
        kind = f"{type(scaler).__module__}.{type(scaler).__name__}"
        raise CheckpointError(f"scaler is a {kind}; it takes the aliquot.GradScaler of the training, or None")


class Restored:
    """What was given its saved state, and can be given back the one before."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], object]] = []

    def load(self, stateful: Stateful, saved: Any, name: str) -> None:
        """`saved`: as `plain` made it; None if it was saved without one."""
        if saved is None:
            raise CheckpointError(f"{name}: the checkpoint was saved without one")
        before = deepcopy(stateful.state_dict())
        self._undo.append(partial(stateful.load_state_dict, before))
        stateful.load_state_dict(unplain(saved))

    def undo(self) -> None:
        """Takes all back, the last one first."""
        while self._undo:
            self._undo.pop()()


def loader_state(manifest: Manifest, world: World) -> Any:
    """What this rank's loader goes on from."""
    saved = [rank.loader for rank in manifest.ranks]
    if manifest.world_size == world.world_size:
        return saved[world.rank]
    if any(other != saved[0] for other in saved):
        raise CheckpointError(
            f"loader: the {manifest.world_size} ranks that saved it had come to different places, which "
            f"{world.world_size} ranks can't take over. Load without loader="
        )
    return saved[0]
