"""Saves behind training (`wait=False`)."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import aliquot
import pytest
import torch
from aliquot.checkpoint import copies, reading
from aliquot.sharded import sharded
from checkpoints import contents, everything, replaced, train
from ranks import SHARED_MEMORY, TRANSPORTS, Transport, run_ranks, started
from torch import Tensor


def train_behind(rank: int, directory: Path) -> None:
    """Each save is of its own step, though training goes on; at the end all are there."""
    model, optimizer = everything(2)
    expected = {}
    for step in range(6):
        train(model, optimizer, rank, range(step, step + 1))
        aliquot.save_checkpoint(directory, model, optimizer, step=step, extra={"step": step}, wait=False)
        expected[step] = aliquot.full_state_dict(model, all_ranks=True)
    for step, state in expected.items():
        assert aliquot.load_checkpoint(directory, model, optimizer, step=step).extra == {"step": step}
        actual = aliquot.full_state_dict(model, all_ranks=True)
        assert [
            key for key in state if not key.startswith("running") and not torch.equal(actual[key], state[key])
        ] == []


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
def test_saves_behind_training_are_of_their_own_step(transport: Transport, tmp_path: Path) -> None:
    run_ranks(2, train_behind, tmp_path, transport=transport)


def save_and_end(rank: int, directory: Path) -> None:
    model, optimizer = everything(3)
    aliquot.save_checkpoint(directory, model, optimizer, step=1, wait=False)


def test_a_save_behind_training_ends_before_the_process(tmp_path: Path) -> None:
    with started(2, save_and_end, tmp_path, transport=SHARED_MEMORY) as ranks:
        ranks.results(timeout=30.0)
        assert ranks.exit_codes(timeout=30.0) == [0, 0]
    assert contents(tmp_path) == {"step_1"}
    assert contents(tmp_path / "step_1") == {"manifest.json", "rank_00000.safetensors", "rank_00001.safetensors"}


def test_memory_is_kept_for_the_same_tensors_and_given_back_before_others_take_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    take, kept = copies.pageable, copies.HostCopies()
    taken: list[weakref.ref[torch.Tensor]] = []
    beside: list[int] = []

    def noted(size: int) -> torch.Tensor:
        beside.append(sum(memory() is not None for memory in taken))
        memory = take(size)
        taken.append(weakref.ref(memory))
        return memory

    monkeypatch.setattr(copies, "pageable", noted)
    for value, sizes in enumerate([(3, 5, 7), (3, 5, 7), (3, 6, 7)]):
        kept.begin()
        for size in sizes:
            assert kept.of(torch.full((size,), value)).tolist() == [value] * size
    assert beside == [0, 1, 2, 1, 2]


def load_with_kept_copies(rank: int, directory: Path, kept: bool, optimizer: Callable[[Any], Any]) -> list[Any]:
    """The sizes of what the load took, and the losses of training that goes on behind it and behind one more save."""
    model, stepped = everything(3, make=lambda model, **_: optimizer(model))
    train(model, stepped, rank, range(2))
    aliquot.save_checkpoint(directory, model, stepped, step=2, wait=not kept)
    train(model, stepped, rank, range(2, 4))
    taken: list[int] = []

    def noted(size: int) -> Tensor:
        taken.append(size)
        return torch.empty(size, dtype=torch.uint8)

    with replaced(copies, "pageable", noted), replaced(reading, "pageable", noted):
        aliquot.load_checkpoint(directory, model, stepped)
    lent = {memory.data_ptr() for memory in sharded(model).world.background.copies._taken}
    assert not lent & {state.value.untyped_storage().data_ptr() for state in stepped.states()}
    train(model, stepped, rank, range(2, 4))
    aliquot.save_checkpoint(directory, model, stepped, step=4, wait=not kept)
    return [sum(taken), train(model, stepped, rank, range(4, 6))]


@pytest.mark.parametrize("optimizer", [aliquot.AdamW, partial(aliquot.TorchOptimizer, optimizer=torch.optim.Adam)])
def test_a_load_borrows_the_memory_of_copies(optimizer: Callable[[Any], Any], tmp_path: Path) -> None:
    """And gives it back: what the next save copies there is nobody else's."""
    kept = run_ranks(2, load_with_kept_copies, tmp_path / "kept", True, optimizer)
    fresh = run_ranks(2, load_with_kept_copies, tmp_path / "fresh", False, optimizer)
    for (_, losses), (_, expected) in zip(kept, fresh, strict=True):
        assert torch.equal(torch.stack(losses), torch.stack(expected))
    assert all(some < 0.7 * more for (some, _), (more, _) in zip(kept, fresh, strict=True))
