"""`aliquot.save_checkpoint`."""

from __future__ import annotations

import json
import logging
import operator
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from aliquot import _core
from aliquot._core import CheckpointError
from aliquot.checkpoint import folder
from aliquot.checkpoint.dtypes import word_of
from aliquot.checkpoint.snapshot import Optimizers, Snapshot
from aliquot.checkpoint.statefuls import Stateful, Statefuls
from aliquot.checkpoint.threads import file_threads
from aliquot.checkpoint.verdict import agree, exchange, problem_of, told
from aliquot.scaler import GradScaler
from aliquot.sharded import sharded
from aliquot.world import World

logger = logging.getLogger("aliquot")


def save_checkpoint(
    directory: str | os.PathLike[str],
    model: nn.Module,
    opt: Optimizers = None,
    *,
    step: int,
    extra: Any = None,
    schedulers: Statefuls = None,
    loader: Stateful | None = None,
    scaler: GradScaler | None = None,
    keep: int | None = None,
    wait: bool = True,
) -> None:
    """Saves all it takes to go on from here, on any number of ranks, as `directory`/step_`step`.

    Parameters and buffers of `model`; states and groups of its optimizers `opt`, one or several; `step`; `extra`, any
    plain value (None, numbers, strings, lists, tuples, dicts); what `schedulers`, the data `loader` and the `scaler`
    say of themselves by `state_dict`; and every rank's random number generators. Every rank calls it, behind a step,
    with the same arguments; `loader` may have come to another place on each. The directory is one that all ranks see,
    and no other job saves to.

    The checkpoint is there as a whole or not at all, whatever happens meanwhile. One of the same step is replaced. If a
    rank fails, all raise the same CheckpointError and nothing has changed.

    `keep`: afterwards only so many of the latest checkpoints stay, and this one, and nothing of saves that died.
    `wait=False`: returns once all is copied to host memory, and writes behind training. If that fails, the next step,
    save or load of any model raises the error, the same one on every rank. A save waits for the one before it.
    """
    state = sharded(model)
    world = state.world
    world.background.settle()
    call = world.background.next_call()
    problem, snapshot, path = "", None, Path()
    try:
        path = Path(directory).absolute()
        step = _count("step", step, 0)
        keep = None if keep is None else _count("keep", keep, 1)
        if world.rank == 0:
            _look_at(path, step)
        snapshot = Snapshot.of(state, opt, extra, schedulers, loader, scaler)
        if not wait:
            snapshot.detach()
        snapshot.finish()
    except Exception as error:
        problem = problem_of(world, error)
    mine = {
        "call": ["save_checkpoint", str(path), step, keep, wait],
        "token": folder.new_token(),
        "buffers": {} if snapshot is None else snapshot.buffer_digests(),
    }
    first = agree(world, f"{call}/begin", mine, problem)[0]
    assert snapshot is not None
    snapshot.keep_buffers(first["buffers"])
    save = Save(world, call, path, step, first["token"], snapshot, keep)
    if wait:
        save.run()
    else:
        world.background.start(save.run)


def _count(name: str, value: Any, least: int) -> int:
    """An int, of NumPy's too."""
    try:
        found = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        found = least - 1
    if not least <= found < 1 << 63:
        raise CheckpointError(f"{name} is {value!r:.100}; it is an int from {least} on")
    return found


def _look_at(directory: Path, step: int) -> None:
    """What is there already."""
    folder.require_replaceable(folder.committed(directory, step))
    steps = folder.steps(directory)
    if steps and steps[0] > step:
        logger.warning(
            "%s has a checkpoint of step %d, which a load takes rather than this one of step %d unless it is told "
            "step=%d. Another directory keeps runs apart", directory, steps[0], step, step,
        )  # fmt: skip


@dataclass
class Save:
    """One save under way; docs/checkpoints.md, "Protocol". It calls nothing of the model's."""

    world: World
    call: str
    directory: Path
    step: int
    token: str
    snapshot: Snapshot
    keep: int | None
    interrupt: BaseException | None = None
    """What is raised once the other ranks know."""
    held: int | None = None
    """What says that the draft is no dead save's."""

    @property
    def draft(self) -> Path:
        """Where it is written."""
        return folder.draft(self.directory, self.step, self.token)

    def run(self) -> None:
        """Writes, and commits if all ranks have written. Collective."""
        try:
            report = self._write()
        except BaseException as error:
            report = {"problem": self._noted(error)}
        try:
            outcome = self._commit(report)
        finally:
            if self.held is not None:
                os.close(self.held)
        if self.interrupt is not None:
            raise self.interrupt
        if outcome:
            raise CheckpointError(f"step {self.step} was not saved: {outcome}")
        if self.keep is not None:
            self._prune(self.keep)

    def _noted(self, error: BaseException) -> str:
        """What the other ranks are told of it."""
        if not isinstance(error, Exception):
            self.interrupt = self.interrupt or error
        return problem_of(self.world, error)

    def _write(self) -> dict[str, Any]:
        """Writes this rank's shard file; returns what rank 0 has to know of it."""
        folder.make(self.draft)
        self.held = folder.hold(self.draft)
        name = f"rank_{self.world.rank:05d}.safetensors"
        parts = self.snapshot.parts
        words = [word_of(part.dtype, part.key) for part in parts]
        numbers = [part.memory.numbers() for part in parts]
        tensors = [
            each.in_file(part.key, word, part.file_shape)
            for part, word, each in zip(parts, words, numbers, strict=True)
        ]
        size, crcs, offsets = _core.write_shard_file(str(self.draft / name), tensors, file_threads(self.world))
        pieces = [
            [part.key, word, list(part.shape), part.begin, part.end, offset]
            for part, word, offset in zip(parts, words, offsets, strict=True)
        ]
        return {"problem": "", "file": name, "bytes": size, "crcs": crcs, "pieces": pieces, "own": self.snapshot.own}

    def _commit(self, report: dict[str, Any]) -> str:
        """What went wrong, on any rank; empty if the checkpoint is there."""
        outcome = ""
        try:
            said = exchange(self.world, f"{self.call}/written", told(self.world, report))
            if self.world.rank == 0:
                outcome = self._publish([json.loads(each) for each in said])
        except BaseException as error:
            outcome = self._noted(error)
        if self.world.rank == 0:  # all have written; it is a failed save's, or what this one replaced
            _discard(self.draft)
        return exchange(self.world, f"{self.call}/outcome", outcome.encode())[0].decode()

    def _publish(self, reports: list[dict[str, Any]]) -> str:
        """The commit, if no rank has a problem; else the first of them."""
        from aliquot.checkpoint.manifest import Manifest, parse

        if problem := next(filter(None, (report["problem"] for report in reports)), ""):
            return str(problem)
        text = Manifest.model_validate(_assembled(self.step, self.snapshot.shared, reports)).text()
        parse(text)  # what can't be read again is not to be committed
        folder.write(self.draft / folder.MANIFEST, text)
        folder.publish(self.draft, folder.committed(self.directory, self.step))
        return ""

    def _prune(self, keep: int) -> None:
        if self.world.rank == 0:
            try:
                prune(self.directory, keep, self.step)
            except (OSError, CheckpointError) as error:
                logger.warning("older checkpoints could not be removed: %s", error)
        exchange(self.world, f"{self.call}/pruned", b"")


def _discard(draft: Path) -> None:
    try:
        folder.discard(draft)
    except OSError as error:
        logger.warning("%s could not be removed: %s", draft, error)


def _assembled(step: int, shared: dict[str, Any], reports: list[dict[str, Any]]) -> dict[str, Any]:
    """The manifest, of what each rank has written."""
    content = {key: value for key, value in shared.items() if key != "empty"}
    tensors: dict[str, dict[str, Any]] = {
        key: {"dtype": word, "shape": shape, "pieces": []} for key, (word, shape) in shared["empty"].items()
    }
    for report in reports:
        for key, word, shape, begin, end, offset in report["pieces"]:
            tensor = tensors.setdefault(key, {"dtype": word, "shape": shape, "pieces": []})
            tensor["pieces"].append({"begin": begin, "end": end, "file": report["file"], "offset": offset})
    for tensor in tensors.values():
        tensor["pieces"].sort(key=lambda piece: piece["begin"])
    optimizers = [dict(optimizer) for optimizer in reports[0]["own"]["optimizers"]]
    for report in reversed(reports):
        for optimizer, theirs in zip(optimizers, report["own"]["optimizers"], strict=True):
            optimizer["scalars"] = optimizer["scalars"] | theirs["scalars"]
    return content | {
        "step": step,
        "world_size": len(reports),
        "files": {report["file"]: {"bytes": report["bytes"], "crcs": report["crcs"]} for report in reports},
        "tensors": tensors,
        "gradients": sorted({name for report in reports for name in report["own"]["gradients"]}),
        "optimizers": optimizers,
        "ranks": [{"rng": report["own"]["rng"], "loader": report["own"]["loader"]} for report in reports],
    }


def prune(directory: Path, keep: int, new: int) -> None:
    """Removes all but the latest checkpoints and the `new` one, and what saves that died have left."""
    from aliquot.checkpoint.catalog import superseded

    for step in superseded(directory, keep, new):
        folder.retire(directory, step)
    for draft in folder.abandoned(directory):
        folder.discard(draft)
