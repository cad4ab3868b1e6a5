"""What people do by mistake when they save: nothing is lost, all ranks say the same, and say what to do."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import aliquot
import numpy as np
import pytest
import torch
from aliquot.checkpoint import folder, manifest
from aliquot.checkpoint.snapshot import Snapshot
from checkpoints import Broken, assert_same_content, content_of, contents, error_of, everything, replaced, train
from ranks import run_ranks
from torch.utils.data import DataLoader

WORLD_SIZE = 2


def misuse(rank: int, directory: Path) -> dict[str, str]:
    model, optimizer = everything(3)
    errors = {}
    for name, (call, _) in MISUSES.items():
        errors[name] = error_of(lambda call=call: call(rank, directory, model, optimizer))
        assert not directory.exists()
    aliquot.save_checkpoint(directory, model, optimizer, step=1)
    return errors


def save_with(**arguments: Any) -> Callable[..., None]:
    """`arguments`: what depends on the rank is a function of it."""

    def call(rank: int, directory: Path, model: Any, optimizer: Any) -> None:
        given = {key: value(rank) if callable(value) else value for key, value in arguments.items()}
        aliquot.save_checkpoint(given.pop("directory", directory), model, optimizer, **{"step": 1, **given})

    return call


def save_midway(rank: int, directory: Path, model: Any, optimizer: Any) -> None:
    with aliquot.no_sync(model):
        model(torch.zeros(1, 1, dtype=torch.long)).sum().backward()
    try:
        aliquot.save_checkpoint(directory, model, optimizer, step=1)
    finally:
        optimizer.zero_grad()


def save_and_load(rank: int, directory: Path, model: Any, optimizer: Any) -> None:
    if rank == 0:
        aliquot.save_checkpoint(directory, model, optimizer, step=1)
    else:
        aliquot.load_checkpoint(directory, model, optimizer)


def load_nothing(rank: int, directory: Path, model: Any, optimizer: Any) -> None:
    aliquot.load_checkpoint(directory, model, optimizer)


MISUSES: dict[str, tuple[Callable[..., None], str]] = {
    "steps": (save_with(step=lambda rank: 1 + rank // 2), r"ranks disagree .* 1, None, True\], rank 2 .* 2, None"),
    "directories": (save_with(directory=lambda rank: f"/nowhere/{rank}"), "ranks disagree .*/nowhere/0.*/nowhere/1"),
    "keep": (save_with(keep=lambda rank: 1 + (rank == 1)), "ranks disagree"),
    "negative step": (save_with(step=-1), "rank 0: step is -1"),
    "step of a float": (save_with(step=1.0), "rank 0: step is 1.0"),
    "keep nothing": (save_with(keep=0), "rank 0: keep is 0"),
    "an object": (save_with(extra=lambda rank: {"a": [object() if rank == 1 else 0]}), r"rank 1: extra\['a'\]\[0\]"),
    "a broken loader": (save_with(loader=lambda rank: Broken(rank == 2)), "rank 2: ValueError: no state"),
    "a broken schedule": (save_with(schedulers=lambda rank: [Broken(rank == 0)]), "rank 0: ValueError: no state"),
    "a loader of torch's": (
        save_with(loader=DataLoader([1])),
        "rank 0: loader is a DataLoader, which has no state_dict.*StatefulDataLoader",
    ),
    "a dict of schedulers": (
        save_with(schedulers={"a": Broken(False)}),
        "rank 0: schedulers is a dict; it is one .*list",
    ),
    "no scheduler": (
        save_with(schedulers=[Broken(False), 3]),
        r"rank 0: schedulers\[1\] is a int, which has no state_d",
    ),
    "a scaler of torch's": (
        save_with(scaler=torch.amp.GradScaler("cpu")),
        "scaler is a torch.*; .* aliquot.GradScaler",
    ),
    "no_sync": (save_midway, "rank 0: gradients of unit .* were not reduced"),
    "save and load": (save_and_load, "no checkpoint to load|ranks disagree"),
    "nothing to load": (load_nothing, "rank 0: .*no checkpoint to load, there is none"),
}


def test_misuse_is_the_same_error_on_every_rank(tmp_path: Path) -> None:
    errors, *others = run_ranks(3, misuse, tmp_path / "here")
    assert others == [errors] * 2
    for name, (_, complaint) in MISUSES.items():
        assert re.search(complaint, errors[name]), errors[name]


def go_back_and_save(rank: int, directory: Path) -> list[str]:
    model, optimizer = everything(3)
    for step in (1000, 2000):
        aliquot.save_checkpoint(directory, model, optimizer, step=step)
    aliquot.save_checkpoint(directory, model, optimizer, step=10, keep=2)
    return sorted(contents(directory))


def test_what_was_just_saved_is_not_pruned(tmp_path: Path) -> None:
    expected = ["step_10", "step_1000", "step_2000"]
    assert run_ranks(WORLD_SIZE, go_back_and_save, tmp_path) == [expected] * WORLD_SIZE


def save_below(rank: int, directory: Path) -> list[str]:
    model, optimizer = everything(3)
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("aliquot").addHandler(handler)
    for step in (20, 10):
        aliquot.save_checkpoint(directory, model, optimizer, step=step)
    return told


def test_a_save_below_the_latest_step_is_told(tmp_path: Path) -> None:
    (told,), nothing = run_ranks(WORLD_SIZE, save_below, tmp_path)
    assert "checkpoint of step 20, which a load takes" in told
    assert nothing == []


def save_over_others(rank: int, directory: Path) -> list[str]:
    model, optimizer = everything(3)
    aliquot.save_checkpoint(directory, model, optimizer, step=0)
    if rank == 0:
        (directory / "step_1" / "mine").mkdir(parents=True)
        (directory / "step_2").write_text("notes")
        (directory / "step_3").symlink_to(directory / "step_0")
        (directory / "step_4").mkdir()
    aliquot.init().communicator.barrier("made")
    errors = [error_of(partial(aliquot.save_checkpoint, directory, model, optimizer, step=s)) for s in (1, 2, 3)]
    aliquot.save_checkpoint(directory, model, optimizer, step=4)
    return errors


def test_what_is_no_checkpoint_is_not_replaced(tmp_path: Path) -> None:
    first, second = run_ranks(WORLD_SIZE, save_over_others, tmp_path)
    assert first == second
    assert all(f"step_{s} is there already, and is no checkpoint" in text for s, text in enumerate(first, 1))
    assert contents(tmp_path) == {f"step_{s}" for s in range(5)}
    assert (tmp_path / "step_1" / "mine").is_dir()
    assert (tmp_path / "step_2").read_text() == "notes"


def give_odd_arguments(rank: int, directory: Path) -> list[str]:
    model, optimizer = everything(3)
    save: Callable[..., None] = aliquot.save_checkpoint
    save(directory, model, optimizer, step=np.int64(3))
    assert aliquot.load_checkpoint(directory, model, optimizer).step == 3
    odd: list[Callable[[], object]] = [
        lambda: save(directory, model, optimizer, step=np.float32(1) if rank else 1),
        lambda: save(directory, model, optimizer, step=True),
        lambda: save(directory, model, optimizer, step=1, keep=[2] if rank else 2),
        lambda: save(None if rank else directory, model, optimizer, step=1),
        lambda: aliquot.load_checkpoint(None if rank else directory, model, optimizer),  # type: ignore[arg-type]
        lambda: aliquot.load_checkpoint(directory, model, optimizer, loader=DataLoader([1])),  # type: ignore[arg-type]
    ]
    return [error_of(call) for call in odd]


def test_odd_arguments_are_the_same_error_on_every_rank(tmp_path: Path) -> None:
    first, second = run_ranks(WORLD_SIZE, give_odd_arguments, tmp_path)
    assert first == second
    expected = ["step is", "step is True", "keep is [2]", "NoneType", "NoneType", "loader is a DataLoader"]
    for words, text in zip(expected, first, strict=True):
        assert words in text


class Loader:
    def __init__(self, state: Any) -> None:
        self.state = state

    def state_dict(self) -> Any:
        return self.state

    def load_state_dict(self, state: Any) -> None:
        self.state = state


def say_too_much(rank: int, directory: Path) -> str:
    model, optimizer = everything(3)
    loader = Loader("x" * (65 << 20) if rank == 1 else "x")
    text = error_of(lambda: aliquot.save_checkpoint(directory, model, optimizer, step=1, loader=loader))
    aliquot.save_checkpoint(directory, model, optimizer, step=1)
    return text


def test_a_state_that_is_too_large_is_told_at_once(tmp_path: Path) -> None:
    first, second = run_ranks(WORLD_SIZE, say_too_much, tmp_path)
    assert first == second
    assert "rank 1: its states" in first
    assert contents(tmp_path) == {"step_1"}


def fail_to_copy(rank: int, directory: Path) -> str:
    def raises(self: Snapshot) -> None:
        raise MemoryError("pinned memory")

    model, optimizer = everything(3)
    with replaced(Snapshot, "detach", raises if rank == 1 else Snapshot.detach):
        text = error_of(lambda: aliquot.save_checkpoint(directory, model, optimizer, step=1, wait=False))
    train(model, optimizer, rank, range(2))
    aliquot.save_checkpoint(directory, model, optimizer, step=2)
    return text


def test_a_copy_that_fails_on_one_rank_fails_on_all(tmp_path: Path) -> None:
    assert run_ranks(WORLD_SIZE, fail_to_copy, tmp_path) == ["rank 1: MemoryError: pinned memory"] * WORLD_SIZE


def interrupt_a_save(rank: int, directory: Path) -> str:
    """Behind the writing, before the commit."""
    model, optimizer = everything(3)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with replaced(folder, "publish", interrupted):
        try:
            aliquot.save_checkpoint(directory, model, optimizer, step=1)
        except KeyboardInterrupt:
            return "interrupted"
        except aliquot.CheckpointError as error:
            return str(error)
    return ""


def test_an_interrupted_save_leaves_nothing_behind(tmp_path: Path) -> None:
    assert run_ranks(WORLD_SIZE, interrupt_a_save, tmp_path) == [
        "interrupted", "step 1 was not saved: rank 0: KeyboardInterrupt: "
    ]  # fmt: skip
    assert contents(tmp_path) == set()


def test_a_draft_that_is_held_is_no_dead_saves(tmp_path: Path) -> None:
    draft = folder.draft(tmp_path, 1, folder.new_token())
    folder.make(draft)
    held = folder.hold(draft)
    assert folder.abandoned(tmp_path) == []
    os.close(held)
    assert folder.abandoned(tmp_path) == [draft]


def tamper(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """A manifest that says something else, with a checksum that is right."""
    content = json.loads(path.read_text())
    change(content)
    content["checksum"] = manifest.checksum({key: value for key, value in content.items() if key != "checksum"})
    path.write_text(json.dumps(content, sort_keys=True, separators=(",", ":")))


HOSTILE: dict[str, Callable[[dict[str, Any]], None]] = {
    "extra": lambda content: content.update(extra={"$tuple": 5}),
    "lr": lambda content: content["optimizers"][0]["groups"][0].update(lr="x"),
    "nan": lambda content: content["optimizers"][0]["groups"][0].update(lr={"$float": "nan"}),
    "betas": lambda content: content["optimizers"][0]["groups"][0].update(betas=3),
}


def load_hostile(rank: int, directory: Path, name: str) -> None:
    model, optimizer = everything(3)
    aliquot.save_checkpoint(directory, model, optimizer, step=1, extra={"a": 1})
    train(model, optimizer, rank, range(2))
    aliquot.save_checkpoint(directory / "mine", model, optimizer, step=1)
    if rank == 0:
        tamper(directory / "step_1" / "manifest.json", HOSTILE[name])
    aliquot.init().communicator.barrier("written")
    error_of(lambda: aliquot.load_checkpoint(directory, model, optimizer, step=1))
    aliquot.save_checkpoint(directory / "after", model, optimizer, step=1)


@pytest.mark.parametrize("name", HOSTILE)
def test_values_that_cannot_be_change_nothing(name: str, tmp_path: Path) -> None:
    run_ranks(WORLD_SIZE, load_hostile, tmp_path, name)
    before, after = (content_of(tmp_path / which / "step_1") for which in ("mine", "after"))
    assert_same_content(after, before)
