"""Whether a checkpoint is of this model, and where in it the model's tensors are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch

from aliquot._core import CheckpointError
from aliquot.checkpoint import contents
from aliquot.checkpoint.dtypes import WORDS
from aliquot.checkpoint.manifest import Manifest, OptimizerState
from aliquot.places import Place
from aliquot.sharded import ShardedModel
from aliquot.sharded_optimizer import ShardedOptimizer

ROUNDED = {"F64", "F32", "F16", "BF16"}
"""Dtypes that are cast to one another."""


class Matching:
    """A model and a manifest. What does not match is refused, and the first name of it said."""

    def __init__(self, model: ShardedModel, manifest: Manifest) -> None:
        self.model = model
        self.manifest = manifest
        self._states: dict[tuple[str, str], set[str]] = defaultdict(set)
        for key in manifest.tensors:
            kind, *rest = key.split("/", 3)
            if kind == "optimizer" and len(rest) == 3:
                number, state, name = rest
                self._states[number, name].add(state)

    def require_model(self) -> None:
        """Parameters and buffers are those of the model."""
        params = {contents.param_key(place.name): place for place in contents.places_of(self.model)}
        self._require_names("parameter", "param/", params)
        for key, place in params.items():
            self._require_like(self.key_of(key), place.shape, place.unit.dtype)
        buffers = contents.buffers_of(self.model)
        self._require_names("buffer", "buffer/", map(contents.buffer_key, buffers))
        for name, buffer in buffers.items():
            self._require_like(self.buffer_key(name), buffer.shape, buffer.dtype)

        for key in self.manifest.tensors.keys() & {contents.gradient_key(place.name) for place in params.values()}:
            place = params[contents.param_key(key.removeprefix(contents.gradient_key("")))]
            self._require_like(key, contents.state_shape(place), None)

    def key_of(self, key: str) -> str:
        """Where a parameter or buffer is, which may be saved by another of its names."""
        kind, _, name = key.partition("/")
        return key if key in self.manifest.tensors else f"{kind}/{self.manifest.tied.get(name, name)}"

    def buffer_key(self, name: str) -> str:
        """Where this rank's own is, if as many ranks saved it and it had one; else rank 0's."""
        world = self.model.world
        own = contents.buffer_key(name, world.rank)
        same = self.manifest.world_size == world.world_size
        return own if same and own in self.manifest.tensors else self.key_of(contents.buffer_key(name))

    def states_of(self, number: int, place: Place) -> list[str]:
        """Names of the states that an optimizer has of a parameter."""
        return sorted(self._states[str(number), place.name])

    def require_optimizers(self, optimizers: Sequence[ShardedOptimizer]) -> None:
        """They are those that were saved, if any are given."""
        if optimizers and len(optimizers) != len(self.manifest.optimizers):
            raise CheckpointError(
                f"{len(optimizers)} optimizers are given, and {len(self.manifest.optimizers)} were saved"
            )
        for number, optimizer in enumerate(optimizers):
            _require_same(optimizer, self.manifest.optimizers[number])
            for place in optimizer.places():
                self._require_states(number, optimizer, place)

    def _require_states(self, number: int, optimizer: ShardedOptimizer, place: Place) -> None:
        found = self.states_of(number, place)
        if found and optimizer.state_names is not None and set(found) != optimizer.state_names:
            raise CheckpointError(
                f"{place.name}: {optimizer.kind} has {sorted(optimizer.state_names)}, and the checkpoint {found}"
            )
        for state in found:
            self._require_like(contents.state_key(number, state, place.name), contents.state_shape(place), None)

    def _require_names(self, what: str, prefix: str, wanted: Iterable[str]) -> None:
        found = {self.key_of(key) for key in wanted}
        for key in sorted(found):
            if key not in self.manifest.tensors:
                raise CheckpointError(f"the checkpoint has no {what} {key.removeprefix(prefix)}, and the model has")
        for key in self.manifest.tensors:
            if key.startswith(prefix) and key not in found:
                raise CheckpointError(
                    f"the checkpoint has the {what} {key.removeprefix(prefix)}, and the model has not"
                )

    def _require_like(self, key: str, shape: torch.Size, dtype: torch.dtype | None) -> None:
        """`dtype`: None takes any."""
        saved = self.manifest.tensors[key]
        if tuple(saved.shape) != tuple(shape):
            raise CheckpointError(f"{key} has the shape {tuple(saved.shape)}, and in the model {tuple(shape)}")
        word = saved.dtype if dtype is None else WORDS.get(dtype)
        if saved.dtype != word and not {saved.dtype, word} <= ROUNDED:
            raise CheckpointError(f"{key} is {saved.dtype}, and in the model {word}")


def _require_same(optimizer: ShardedOptimizer, saved: OptimizerState) -> None:
    if optimizer.kind != saved.kind:
        raise CheckpointError(f"the optimizer is {optimizer.kind}, and {saved.kind} was saved")
    if len(optimizer.param_groups) != len(saved.groups):
        raise CheckpointError(
            f"{optimizer.kind} has {len(optimizer.param_groups)} groups, and {len(saved.groups)} were saved"
        )
    for number, (group, theirs) in enumerate(zip(optimizer.param_groups, saved.groups, strict=True)):
        mine = [param._aliquot.name for param in group["params"]]
        if different := set(mine) ^ set(theirs.get("params", ())):
            name = min(different)
            where = "the optimizer's" if name in mine else "the checkpoint's"
            raise CheckpointError(f"{optimizer.kind}: only {where} group {number} has {name}")
