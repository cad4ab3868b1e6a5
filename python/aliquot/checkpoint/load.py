"""`aliquot.load_checkpoint`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from aliquot._core import CheckpointError, PageCache
from aliquot.checkpoint import contents
from aliquot.checkpoint.catalog import Checkpoint, latest_checkpoint, open_checkpoint
from aliquot.checkpoint.manifest import Manifest, OptimizerState
from aliquot.checkpoint.matching import Matching
from aliquot.checkpoint.plain import unplain
from aliquot.checkpoint.putting import Putting
from aliquot.checkpoint.reading import Reading
from aliquot.checkpoint.rng import rng_states, set_rng_states
from aliquot.checkpoint.snapshot import Optimizers
from aliquot.checkpoint.statefuls import Restored, Stateful, Statefuls, listed, loader_state, require_kinds
from aliquot.checkpoint.threads import file_threads, ranks_here
from aliquot.checkpoint.verdict import agree, problem_of
from aliquot.scaler import GradScaler
from aliquot.sharded import ShardedModel, sharded
from aliquot.sharded_optimizer import ShardedOptimizer, drop_gradients, settings_of
from aliquot.states import State
from aliquot.unit import Unit


@dataclass(frozen=True)
class Loaded:
    """What a checkpoint says beside what it was loaded into."""

    step: int
    extra: Any
    world_size: int
    """How many ranks saved it."""


def load_checkpoint(
    directory: str | os.PathLike[str],
    model: nn.Module,
    opt: Optimizers = None,
    *,
    step: int | None = None,
    schedulers: Statefuls = None,
    loader: Stateful | None = None,
    scaler: GradScaler | None = None,
) -> Loaded:
    """Goes on from what `save_checkpoint` saved: that of `step`, or the latest whole one in `directory`.

    The arguments are as they were there; any may be left out but `model`, and then stays as it is. Number of ranks,
    stage, transport and units may be others than they were, and masters kept in another form. Every rank calls it. Each
    reads what it needs of each tensor into new memory; if all checksums are right on all ranks it is put in place, else
    all raise the same CheckpointError and nothing has changed. Gradients are dropped.

    On as many ranks as saved, each gets back its own buffers, random number generators and loader. On another number,
    rank 0's buffers and loader count (a loader that had come to different places is refused), each rank takes the
    generators of the rank that had its number, and those of ranks that did not exist stay as they are.
    """
    state = sharded(model)
    world = state.world
    world.background.settle()
    call = world.background.next_call()
    path, checkpoint, problem = Path(), None, ""
    try:
        path = Path(directory).absolute()
        if world.rank == 0:
            checkpoint = latest_checkpoint(path) if step is None else open_checkpoint(path, step)
    except Exception as error:
        problem = problem_of(world, error)
    mine: dict[str, Any] = {"call": ["load_checkpoint", str(path), step]}
    if checkpoint is not None:
        mine["chosen"] = checkpoint.manifest.step
    chosen = agree(world, f"{call}/begin", mine, problem)[0]["chosen"]
    load, mine, extra = Load(state), {"call": ["load_checkpoint"]}, None
    try:
        checkpoint = checkpoint or open_checkpoint(path, chosen)
        mine["call"].append(checkpoint.digest)
        extra = unplain(checkpoint.manifest.extra)
        load.prepare(checkpoint, opt, listed(schedulers), loader, scaler)
    except Exception as error:
        problem = problem_of(world, error)
    try:
        agree(world, f"{call}/read", mine, problem)
    except BaseException:
        load.undo()
        raise
    load.commit()
    assert checkpoint is not None
    return Loaded(checkpoint.manifest.step, extra, checkpoint.manifest.world_size)


def cache_of(model: ShardedModel) -> PageCache:
    """What ranks of a host all read stays in the kernel's cache until the last has it; else it would only fill it."""
    apart = model.replicas == 1 and all(
        model.stage == 3 or (model.stage > 0 and unit.trainable) for unit in model.units
    )
    return PageCache.drop if apart or ranks_here(model.world) == 1 else PageCache.keep


class Load:
    """One load: first all is made ready beside what is there, then it is put in its place."""

    def __init__(self, model: ShardedModel) -> None:
        self.model = model
        self._puts: list[Callable[[], object]] = []
        """What puts values in their places; none of them fails."""
        self._settle: list[Callable[[], object]] = []
        """What comes behind that."""
        self._restored = Restored()
        self._accumulating = False
        """Whether gradients came that no step has used."""

    def prepare(
        self, checkpoint: Checkpoint, opt: Optimizers, schedulers: list[Stateful], loader: Stateful | None,
        scaler: GradScaler | None,
    ) -> None:  # fmt: skip
        """Reads, and refuses what does not fit."""
        require_kinds(loader, scaler)
        contents.require_between_steps(self.model, "load")
        optimizers = contents.optimizers_of(self.model, opt)
        matched = Matching(self.model, checkpoint.manifest)
        matched.require_model()
        matched.require_optimizers(optimizers)
        reading = Reading(checkpoint, self.model.world.background.copies.lender())
        self._want_params(reading, matched)
        self._want_buffers(reading, matched)
        if optimizers and checkpoint.manifest.gradients:
            self._want_gradients(reading, checkpoint.manifest)
        contents.note_frozen(optimizers, checkpoint.manifest)
        states = [list(self._want_states(reading, matched, *both)) for both in enumerate(optimizers)]
        reading.run(file_threads(self.model.world), cache_of(self.model))
        for number, optimizer in enumerate(optimizers):
            self._prepare_optimizer(optimizer, checkpoint.manifest.optimizers[number], states[number])
        self._settle.append(lambda: self._set_step_counts(checkpoint.manifest.step_counts))
        self._load_statefuls(checkpoint.manifest, schedulers, loader, scaler)
        self._prepare_rng(checkpoint.manifest)

    def _want_params(self, reading: Reading, matched: Matching) -> None:
        values = [
            (part.memory, reading.borrow(matched.key_of(part.key), part.begin, part.end))
            for part in contents.params_to_load(self.model)
        ]
        self._puts.append(partial(Putting(self.model.world).put, values))

    def _want_buffers(self, reading: Reading, matched: Matching) -> None:
        for name, buffer in contents.buffers_of(self.model).items():
            key = matched.buffer_key(name)
            values = reading.want(key, 0, buffer.numel()).view(buffer.shape)
            self._settle.append(partial(buffer.detach().copy_, values))

    def _want_gradients(self, reading: Reading, manifest: Manifest) -> None:
        for unit in self.model.units:
            keys = {contents.gradient_key(place.name) for place in unit.places} & manifest.tensors.keys()
            if not unit.trainable or not keys:
                continue
            values = {}
            for index, begin, numel, _ in self.model.engine.parts_to_load(unit.index, "param"):
                key = contents.gradient_key(unit.places[index].name)
                if key in keys:
                    values[key, begin] = reading.want(key, begin, begin + numel)
            present = [place.name in manifest.gradients for place in unit.places]
            self._puts.append(partial(self._restore_gradients, unit, present, values))

    def _restore_gradients(self, unit: Unit, present: list[bool], values: dict[tuple[str, int], torch.Tensor]) -> None:
        self.model.engine.restore_gradients(unit.index, present, self.model.stream())
        for part in contents.gradients_to_load(self.model, unit):
            if (part.key, part.begin) in values:
                part.memory.take(values[part.key, part.begin])
        self._accumulating = True

    def _want_states(
        self, reading: Reading, matched: Matching, number: int, optimizer: ShardedOptimizer
    ) -> Iterator[State]:
        want = reading.want if optimizer.keeps_loaded else reading.borrow
        for place, begin, numel in contents.pieces_to_load(optimizer):
            for state in matched.states_of(number, place):
                values = want(contents.state_key(number, state, place.name), begin, begin + numel)
                yield State(state, place, begin, values)

    def _prepare_optimizer(self, optimizer: ShardedOptimizer, saved: OptimizerState, states: list[State]) -> None:
        scalars = {
            name: {state: unplain(value) for state, value in of_param.items()}
            for name, of_param in saved.scalars.items()
        }
        self._puts.append(optimizer.prepare(states, scalars))
        for number, (group, theirs) in enumerate(zip(optimizer.param_groups, saved.groups, strict=True)):
            settings = {key: unplain(value) for key, value in settings_of(theirs).items()}
            optimizer.require_settings(number, group | settings)
            self._settle.append(partial(group.update, settings))
        self._settle.append(partial(setattr, optimizer, "skipped_in_a_row", saved.skipped_in_a_row))

    def _set_step_counts(self, counts: list[int]) -> None:
        steps, skipped, in_a_row = counts
        self.model.engine.set_step_counts(steps, skipped, in_a_row, self.model.stream())

    def _load_statefuls(
        self, manifest: Manifest, schedulers: list[Stateful], loader: Stateful | None, scaler: GradScaler | None
    ) -> None:
        if schedulers and len(schedulers) != len(manifest.schedulers):
            raise CheckpointError(f"there are {len(schedulers)} schedulers, and {len(manifest.schedulers)} were saved")
        for number, scheduler in enumerate(schedulers):
            self._restored.load(scheduler, manifest.schedulers[number], f"schedulers[{number}]")
        if loader is not None:
            self._restored.load(loader, loader_state(manifest, self.model.world), "loader")
        if scaler is not None:
            self._restored.load(scaler, manifest.scaler, "scaler")

    def _prepare_rng(self, manifest: Manifest) -> None:
        """Tries them, so that later they can't fail."""
        world = self.model.world
        if world.rank >= manifest.world_size:
            return
        states, before = unplain(manifest.ranks[world.rank].rng), rng_states(world)
        try:
            set_rng_states(world, states)
        finally:
            set_rng_states(world, before)
        self._settle.append(partial(set_rng_states, world, states))

    def undo(self) -> None:
        """Takes back what was done to schedulers, the loader and the scaler."""
        self._restored.undo()

    def commit(self) -> None:
        """Collective."""
        engine, stream = self.model.engine, self.model.stream()
        engine.begin_write()
        drop_gradients(self.model)
        while self._puts:
            self._puts.pop(0)()
        if self._accumulating:
            engine.share_gradients(stream)
        engine.end_update(stream)
        while self._settle:
            self._settle.pop(0)()
        self.model.passes.end_step()
        self.model.note_change()
        self.model.accumulating = self._accumulating
        if self._accumulating and self.model.scaler is not None:
            self.model.scaler.note_scaled()
