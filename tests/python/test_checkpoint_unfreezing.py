"""Checkpoints of parameters that were frozen at `aliquot.shard` and train later."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import aliquot
import pytest
from cases import square_loss
from ranks import run_ranks
from test_unfreezing import FROZEN, LR, MAKE, STEPS, WORLD_SIZE, unfreeze
from torch import Tensor
from training import Turn, assert_same_bits, built


def save_and_go_on(rank: int, folder: Path, saved_at: int, loaded_unfrozen: bool) -> None:
    """A checkpoint of unfrozen parameters goes into a model that has unfrozen them, or never froze any."""

    def steps(model: Any, optimizer: aliquot.AdamW, first: int, last: int) -> dict[str, Tensor]:
        for step in range(first, last):
            unfreeze(model, step)
            optimizer.zero_grad()
            square_loss(model, Turn(rank, step)).backward()
            optimizer.step()
        return aliquot.full_state_dict(model, all_ranks=True)

    model: Any = aliquot.shard(built(FROZEN))
    optimizer = aliquot.AdamW(model, lr=LR)
    steps(model, optimizer, 0, saved_at)
    aliquot.save_checkpoint(folder, model, optimizer, step=saved_at)
    expected = steps(model, optimizer, saved_at, STEPS)
    other: Any = aliquot.shard(built(FROZEN))
    if loaded_unfrozen:
        for step in range(saved_at):
            unfreeze(other, step)
    again = aliquot.AdamW(other, lr=LR)
    if not loaded_unfrozen:
        for step in range(saved_at):
            unfreeze(other, step)
    aliquot.load_checkpoint(folder, other, again)
    assert_same_bits(steps(other, again, saved_at, STEPS), expected)


@pytest.mark.parametrize("loaded_unfrozen", [True, False])
@pytest.mark.parametrize("saved_at", [1, 4])
def test_checkpoints(tmp_path: Path, saved_at: int, loaded_unfrozen: bool) -> None:
    run_ranks(WORLD_SIZE, save_and_go_on, tmp_path, saved_at, loaded_unfrozen)


def load_into_frozen(rank: int, folder: Path, kind: str) -> None:
    """States of what is frozen here have no place, and begin anew when it is unfrozen; the values have."""
    make = STEPPED_BY[kind]

    def step(model: Any, optimizer: Any) -> None:
        optimizer.zero_grad()
        square_loss(model, Turn(rank, 0)).backward()
        optimizer.step()

    def loaded(with_states: bool) -> dict[str, Tensor]:
        other: Any = aliquot.shard(built(FROZEN))
        again = make(other, lr=LR)
        aliquot.load_checkpoint(folder, other, again if with_states else None)
        assert_same_bits(aliquot.full_state_dict(other), values)
        other.requires_grad_(True)
        step(other, again)
        return aliquot.full_state_dict(other, all_ranks=True)

    model: Any = aliquot.shard(built(FROZEN))
    optimizer = make(model, lr=LR)
    model.requires_grad_(True)
    for _ in range(3):
        step(model, optimizer)
    values = aliquot.full_state_dict(model)
    aliquot.save_checkpoint(folder, model, optimizer, step=3)
    warned = Warnings()
    logging.getLogger("aliquot").addHandler(warned)
    of_all, of_none = loaded(True), loaded(False)
    assert len([text for text in warned.texts if "are frozen here: their states are not loaded" in text]) == 1
    frozen = [name for name in of_all if name.startswith(("first", "blocks.0", "blocks.1"))]
    assert_same_bits({name: of_all[name] for name in frozen}, {name: of_none[name] for name in frozen})


STEPPED_BY: dict[str, Any] = {name: make for name, (make, _) in MAKE.items()} | {
    "8 bits": partial(aliquot.AdamW, moment_bits=8)
}


class Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@pytest.mark.parametrize("kind", STEPPED_BY)
def test_a_checkpoint_goes_into_a_model_that_is_still_frozen(kind: str, tmp_path: Path) -> None:
    run_ranks(WORLD_SIZE, load_into_frozen, tmp_path, kind)
