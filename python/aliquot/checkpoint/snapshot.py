"""What a rank has to save, at one instant."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from aliquot import _core
from aliquot.checkpoint import contents
from aliquot.checkpoint.dtypes import word_of
from aliquot.checkpoint.parts import Part, as_bytes
from aliquot.checkpoint.plain import plain
from aliquot.checkpoint.rng import rng_states
from aliquot.checkpoint.statefuls import Stateful, Statefuls, listed, require_kinds
from aliquot.scaler import GradScaler
from aliquot.sharded import ShardedModel
from aliquot.sharded_optimizer import ShardedOptimizer, settings_of
from aliquot.world import World

Optimizers = ShardedOptimizer | Iterable[ShardedOptimizer] | None


@dataclass
class Snapshot:
    """What this rank has to save, where it is."""

    world: World
    parts: list[Part]
    buffers: dict[str, torch.Tensor]
    """Copies on the host."""
    shared: dict[str, Any]
    """Of the manifest, what is alike on all ranks. Of it, what only rank 0 needs to say."""
    own: dict[str, Any]
    """Of the manifest, what each rank says for itself."""

    @staticmethod
    def of(
        model: ShardedModel, opt: Optimizers, extra: Any, schedulers: Statefuls, loader: Stateful | None,
        scaler: GradScaler | None,
    ) -> Snapshot:  # fmt: skip
        """Refuses what can't be saved. Copies nothing but buffers and small states."""
        contents.require_between_steps(model, "save")
        contents.require_reduced(model)
        require_kinds(loader, scaler)
        contents.require_scale(model, scaler)
        optimizers = contents.optimizers_of(model, opt)
        parts = [*contents.params_to_save(model), *contents.gradients_to_save(model)]
        for number, optimizer in enumerate(optimizers):
            parts += contents.states_to_save(number, optimizer)
        shared = {
            "aliquot": _core.__version__,
            "stage": model.stage,
            "transport": model.world.transport,
            "configuration": contents.configuration_digest(model),
            "tied": contents.tied_names(model),
            "step_counts": list(model.engine.step_counts()),
            "schedulers": [plain(each.state_dict(), f"schedulers[{i}]") for i, each in enumerate(listed(schedulers))],
            "scaler": None if scaler is None else plain(_scaler_state(scaler), "scaler"),
            "extra": plain(extra, "extra"),
            "empty": {
                contents.param_key(place.name): [word_of(place.unit.dtype, place.name), list(place.shape)]
                for place in contents.places_of(model)
                if not place.shape.numel()
            },
        }
        own = {
            "rng": plain(rng_states(model.world), "the states of random number generators"),
            "gradients": contents.names_with_gradients(model),
            "loader": None if loader is None else plain(loader.state_dict(), "loader"),
            "optimizers": [_optimizer_state(optimizer, i) for i, optimizer in enumerate(optimizers)],
        }
        buffers = {
            name: buffer.detach().to("cpu", copy=True).contiguous()
            for name, buffer in contents.buffers_of(model).items()
        }
        shared["empty"] |= {
            contents.buffer_key(name): [word_of(buffer.dtype, name), list(buffer.shape)]
            for name, buffer in buffers.items()
            if not buffer.numel()
        }
        return Snapshot(model.world, parts, buffers, shared, own)

    def buffer_digests(self) -> dict[str, str]:
        """Which tell whether ranks have the same."""
        return {
            name: hashlib.blake2b(as_bytes(buffer) if buffer.numel() else b"", digest_size=16).hexdigest()
            for name, buffer in self.buffers.items()
        }

    def detach(self) -> None:
        """Copies all to host memory, so that training may go on."""
        copies = self.world.background.copies
        copies.begin()
        self.parts = [part.copied(copies) for part in self.parts]

    def finish(self) -> None:
        """Waits until the device has done what it was given, so that all parts are what they are to be."""
        if self.world.device.type == "cuda":
            torch.cuda.current_stream(self.world.device).synchronize()

    def keep_buffers(self, of_rank_0: dict[str, str]) -> None:
        """Rank 0's, and of another rank those that differ from them, become parts."""
        mine = self.buffer_digests()
        rank = self.world.rank
        kept = {name: self.buffers[name] for name in mine if rank == 0 or mine[name] != of_rank_0.get(name)}
        self.parts += contents.buffer_parts(kept, rank)


def _scaler_state(scaler: GradScaler) -> dict[str, Any]:
    scaler.require_updated()
    return scaler.state_dict()


def _optimizer_state(optimizer: ShardedOptimizer, number: int) -> dict[str, Any]:
    where = f"opt {number}"
    groups = []
    for group in optimizer.param_groups:
        settings = {key: plain(value, f"{where}: {key}") for key, value in settings_of(group).items()}
        groups.append(settings | {"params": [param._aliquot.name for param in group["params"]]})
    return {
        "kind": optimizer.kind,
        "groups": groups,
        "scalars": {
            name: {state: plain(value, f"{where}: {state} of {name}") for state, value in of_param.items()}
            for name, of_param in optimizer.scalars().items()
        },
        "skipped_in_a_row": optimizer.skipped_in_a_row,
    }
