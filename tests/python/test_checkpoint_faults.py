"""What fails on one rank fails on all with the same words, and leaves everything as it was."""

from __future__ import annotations

import os
import random
import re
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import aliquot
import pytest
import torch
from aliquot import _core
from aliquot.checkpoint import folder
from checkpoints import (
    Broken,
    Everything,
    assert_same_content,
    content_of,
    contents,
    error_of,
    everything,
    manifest_of,
    replaced,
    train,
)  # fmt: skip
from ranks import FORK, SHARED_MEMORY, run_ranks, started
from torch import nn
from training import ADAMW

WORLD_SIZE = 3
SECONDS = 2.0


def failing(*_: object) -> None:
    raise OSError(28, "No space left on device")


PLACES = [
    (0, _core, "write_shard_file"),
    (2, _core, "write_shard_file"),
    (0, folder, "make"),
    (1, folder, "make"),
    (0, folder, "write"),
    (0, folder, "publish"),
    (0, folder, "_sync"),
]
"""Who fails, and where."""


def fail_to_save(rank: int, directory: Path, wait: bool) -> list[str]:
    """The errors; what there was is still there each time, and then the same save works."""
    model, optimizer = everything(3)
    aliquot.save_checkpoint(directory, model, optimizer, step=1)

    def save() -> None:
        aliquot.save_checkpoint(directory, model, optimizer, step=2, keep=1, wait=wait)
        train(model, optimizer, rank, range(100))  # which raises it, once all ranks know

    errors = []
    for culprit, owner, name in PLACES:
        with replaced(owner, name, failing if rank == culprit else getattr(owner, name)):
            errors.append(error_of(save))
        assert contents(directory) == {"step_1"}
    aliquot.save_checkpoint(directory, model, optimizer, step=2)
    assert contents(directory) == {"step_1", "step_2"}
    assert aliquot.load_checkpoint(directory, model, optimizer).step == 2
    return errors


@pytest.mark.parametrize("wait", [True, False])
def test_a_save_that_fails_on_one_rank(wait: bool, tmp_path: Path) -> None:
    for errors in run_ranks(WORLD_SIZE, fail_to_save, tmp_path, wait):
        assert errors == [
            f"step 2 was not saved: rank {culprit}: OSError: [Errno 28] No space left on device"
            for culprit, _, _ in PLACES
        ]


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


def flip_a_tensor(path: Path) -> None:
    """In the middle of what the last rank needs."""
    tensor = manifest_of(path)["tensors"]["optimizer/0/exp_avg/odd.weight"]
    flip(path / tensor["pieces"][-1]["file"], tensor["pieces"][-1]["offset"] + 2)


def swap_files(path: Path) -> None:
    (path / "rank_00000.safetensors").rename(path / "other")
    (path / "rank_00001.safetensors").rename(path / "rank_00000.safetensors")
    (path / "other").rename(path / "rank_00001.safetensors")


def link(path: Path) -> None:
    file = path / "rank_00001.safetensors"
    file.rename(path.parent / "elsewhere")
    file.symlink_to(path.parent / "elsewhere")


def link_all(path: Path) -> None:
    path.rename(path.parent / "elsewhere")
    path.symlink_to("elsewhere")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (flip_a_tensor, r"rank_0000\d\.safetensors.*chunk 0"),
    "the manifest": (lambda path: flip(path / "manifest.json", 500), "manifest.json: "),
    "no manifest": (lambda path: (path / "manifest.json").unlink(), "No such file"),
    "a truncated file": (lambda path: os.truncate(path / "rank_00001.safetensors", 5000), "5000 bytes"),
    "a missing file": (lambda path: (path / "rank_00001.safetensors").unlink(), "No such file"),
    "swapped files": (swap_files, "safetensors"),
    "a link": (link, "no plain file"),
    "a link to all": (link_all, "step_3: it is a link"),
    "another step's": (lambda path: path.rename(path.parent / "step_9"), "No such file"),
}  # fmt: skip


def load_damaged(rank: int, sources: list[Path], directory: Path) -> list[str]:
    model, optimizer = everything(3, seed=1)
    train(model, optimizer, rank, range(2))
    loader, schedule = Broken(False), Broken(False)
    loader.state = schedule.state = {"place": 1}
    aliquot.save_checkpoint(directory / "before", model, optimizer, step=0, loader=loader, schedulers=schedule)
    generators = torch.get_rng_state(), random.getstate()
    errors = [
        error_of(
            lambda source=source: aliquot.load_checkpoint(
                source, model, optimizer, step=3, loader=loader, schedulers=schedule
            )
        )
        for source in sources
    ]
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]
    aliquot.save_checkpoint(directory / "after", model, optimizer, step=0, loader=loader, schedulers=schedule)
    train(model, optimizer, rank, range(2, 3))
    return errors


def save_3(rank: int, directory: Path, loader: Any = None) -> None:
    model, optimizer = everything(3)
    train(model, optimizer, rank, range(3))
    aliquot.save_checkpoint(
        directory, model, optimizer, step=3, loader=loader or Broken(False), schedulers=Broken(False)
    )


def test_damage_is_found_and_nothing_changes(tmp_path: Path) -> None:
    run_ranks(2, save_3, tmp_path / "whole")
    broken = Broken(False)
    broken.state = {"place": 7}
    run_ranks(2, save_3, tmp_path / "raises", broken)
    for name, (damage, _) in DAMAGES.items():
        shutil.copytree(tmp_path / "whole", tmp_path / name)
        damage(tmp_path / name / "step_3")
    sources = [*(tmp_path / name for name in DAMAGES), tmp_path / "raises"]
    errors, *others = run_ranks(WORLD_SIZE, load_damaged, sources, tmp_path)
    assert others == [errors] * (WORLD_SIZE - 1)
    for error, (_, complaint) in zip(errors, [*DAMAGES.values(), ("", "rank 0: ValueError: not there")], strict=True):
        assert re.search(complaint, error), error
    before, after = (tmp_path / name / "step_0" for name in ("before", "after"))
    assert_same_content(content_of(after), content_of(before))
    assert manifest_of(after)["ranks"] == manifest_of(before)["ranks"]


def load_without_memory(rank: int, directory: Path) -> list[str]:
    """Each time another rank lacks what it takes to put values in their places."""
    model, optimizer = everything(3, seed=1)
    train(model, optimizer, rank, range(2))
    aliquot.save_checkpoint(directory / "before", model, optimizer, step=0)
    errors = []
    for culprit in range(2):
        made = failing if rank == culprit else _core.ValuePutter
        with replaced(_core, "ValuePutter", made):
            errors.append(error_of(lambda: aliquot.load_checkpoint(directory, model, optimizer)))
    aliquot.save_checkpoint(directory / "after", model, optimizer, step=0)
    return errors


def test_a_load_takes_all_that_it_needs_before_it_changes_anything(tmp_path: Path) -> None:
    run_ranks(2, save_3, tmp_path)
    for errors in run_ranks(2, load_without_memory, tmp_path):
        assert errors == [f"rank {culprit}: OSError: [Errno 28] No space left on device" for culprit in range(2)]
    before, after = (tmp_path / name / "step_0" for name in ("before", "after"))
    assert_same_content(content_of(after), content_of(before))


def wider() -> nn.Module:
    model = Everything()
    model.odd = nn.Linear(model.odd.in_features, 14, bias=False)
    model.back = nn.Linear(14, model.odd.in_features)
    return model


def without_running() -> nn.Module:
    model = Everything()
    model.running = nn.Identity()
    return model


def with_another() -> nn.Module:
    model = Everything()
    model.another = nn.Parameter(torch.ones(3))
    return model


def without_codes() -> nn.Module:
    model = Everything()
    model.codes = nn.Parameter(torch.zeros(37, dtype=torch.int16), requires_grad=False)
    return model


OTHERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "shape": (wider, r"param/odd\.weight has the shape \(13, 8\), and in the model \(14, 8\)"),
    "unknown": (without_running, r"the checkpoint has the buffer running\.mean, and the model has not"),
    "missing": (with_another, "the checkpoint has no parameter another, and the model has"),
    "dtype": (without_codes, "param/codes is I8, and in the model I16"),
}  # fmt: skip


def load_others(rank: int, directory: Path) -> list[str]:
    errors = []
    for build, _ in OTHERS.values():
        model = aliquot.shard(build())
        optimizer = aliquot.AdamW(model, **ADAMW)
        expected = aliquot.full_state_dict(model, all_ranks=True)
        errors.append(error_of(partial(aliquot.load_checkpoint, directory, model, optimizer)))
        actual = aliquot.full_state_dict(model, all_ranks=True)
        assert [key for key in expected if not torch.equal(actual[key], expected[key])] == []
    return errors


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    run_ranks(2, save_3, tmp_path)
    errors, others = run_ranks(2, load_others, tmp_path)
    assert others == errors
    for error, (_, complaint) in zip(errors, OTHERS.values(), strict=True):
        assert re.search(complaint, error), error


def prune(rank: int, directory: Path) -> None:
    model, optimizer = everything(2)
    for step in range(5):
        aliquot.save_checkpoint(directory, model, optimizer, step=step)
    if rank == 0:
        (directory / "step_3" / "manifest.json").write_text("{}")
        (directory / "step_7").mkdir()
        (directory / "notes").mkdir()
        folder.make(folder.draft(directory, 2, folder.new_token()))
    aliquot.save_checkpoint(directory, model, optimizer, step=5, keep=2)
    assert contents(directory) == {"notes", "step_7", "step_3", "step_4", "step_5"}
    assert aliquot.load_checkpoint(directory, model, optimizer).step == 5
    aliquot.save_checkpoint(directory, model, optimizer, step=5, keep=1)
    assert contents(directory) == {"notes", "step_7", "step_3", "step_5"}


def test_keep_removes_older_checkpoints_and_what_dead_saves_left(tmp_path: Path) -> None:
    """And nothing that is no checkpoint, nor a damaged one."""
    run_ranks(2, prune, tmp_path)


def pass_over(rank: int, directory: Path) -> int:
    model, optimizer = everything(3)
    for step in (1, 2, 3):
        aliquot.save_checkpoint(directory, model, optimizer, step=step)
    aliquot.init().communicator.barrier("saved")
    if rank == 0:
        (directory / "step_3" / "manifest.json").unlink()
        os.truncate(directory / "step_2" / "rank_00001.safetensors", 10)
    return aliquot.load_checkpoint(directory, model, optimizer).step


def test_the_latest_is_the_highest_step_that_is_whole(tmp_path: Path) -> None:
    assert run_ranks(2, pass_over, tmp_path) == [1, 1]


def save_until_lost(rank: int, directory: Path, saving: Any) -> tuple[float, int]:
    model, optimizer = everything(3)
    step = 0
    while True:
        try:
            aliquot.save_checkpoint(directory, model, optimizer, step=step, wait=step % 2 == 0)
        except aliquot.PeerLost as error:
            return time.monotonic(), error.rank
        saving.release()
        step += 1


@pytest.mark.parametrize("victim", range(WORLD_SIZE))
def test_a_rank_that_dies_in_a_save_is_named(victim: int, tmp_path: Path) -> None:
    saving = FORK.Semaphore(0)
    with started(WORLD_SIZE, save_until_lost, tmp_path, saving, transport=SHARED_MEMORY) as ranks:
        for _ in range(3 * WORLD_SIZE):
            assert saving.acquire(timeout=30.0)
        Event().wait(random.uniform(0, 0.1))  # the instant
        death = ranks.kill(victim)
        outcomes = [outcome for outcome in ranks.results(timeout=15.0) if outcome is not None]
    assert [named for _, named in outcomes] == [victim] * (WORLD_SIZE - 1)
    assert max(when for when, _ in outcomes) - death < SECONDS
    run_ranks(1, load_nothing_new, tmp_path)


def load_nothing_new(rank: int, directory: Path) -> None:
    """What is there can be loaded, and the step that was cut off saved again."""
    model, optimizer = everything(1)
    step = aliquot.load_checkpoint(directory, model, optimizer).step
    aliquot.save_checkpoint(directory, model, optimizer, step=step + 1, keep=2)
    assert contents(directory) == {f"step_{step}", f"step_{step + 1}"}
