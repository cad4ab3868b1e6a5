"""Hyperparameters that can't be right are refused by the step that would use them, and nothing is stepped."""

from __future__ import annotations

import math
import re
from typing import Any

import aliquot
import pytest
import torch
from cases import CASES
from ranks import run_ranks
from training import built

KINDS = ("AdamW", "Adam", "SGD", "Lion", "Adagrad", "LAMB")
NO_NUMBERS = (math.inf, math.nan, "x", None, torch.ones(2), 1e39)
NUMBERS = ("lr", "eps", "weight_decay", "momentum", "dampening", "lr_decay", "initial_accumulator_value")
NO_BETAS = ((0.9, math.nan), (0.9, "x"), (0.9,), 0.9, None, (-0.1, 0.9), (0.9, 1.0))


def impossible(group: dict[str, Any]) -> list[tuple[str, Any]]:
    numbers = [(key, value) for key in NUMBERS if key in group for value in NO_NUMBERS]
    return numbers + [("betas", value) for value in NO_BETAS if "betas" in group]


def step_and_refuse(optimizer: Any, key: str, value: Any, say: str) -> None:
    group = optimizer.param_groups[1]
    before = group[key]
    group[key] = value
    with pytest.raises(aliquot.InvalidArgument, match=re.escape(f"{say}: {key} is {value!r} in param_groups[1]; set ")):
        optimizer.step()
    group[key] = before


def write_later(rank: int) -> None:
    """As a scheduler would, or the user."""
    for kind in KINDS:
        model = aliquot.shard(built(CASES["plain"]))
        first, *rest = model.parameters()
        momentum = {"momentum": 0.9} if kind == "SGD" else {}
        optimizer = getattr(aliquot, kind)(model, params=[{"params": [first]}, {"params": rest}], **momentum)
        model(torch.ones(1, 8)).sum().backward()
        expected = aliquot.full_state_dict(model)
        for key, value in impossible(optimizer.param_groups[1]):
            step_and_refuse(optimizer, key, value, kind)
        actual = aliquot.full_state_dict(model)
        assert all(torch.equal(actual[name], expected[name]) for name in expected), kind
        optimizer.param_groups[1]["lr"] = torch.tensor(0.5)
        optimizer.step()
        assert not optimizer.skipped_in_a_row
        stepped = aliquot.full_state_dict(model)
        assert any(not torch.equal(stepped[name], expected[name]) for name in expected), kind


def test_what_is_written_later_is_refused_by_the_step() -> None:
    run_ranks(1, write_later)


def write_later_for_muon(rank: int) -> None:
    model = aliquot.shard(built(CASES["plain"]))
    matrices = [param for param in model.parameters() if param.ndim == 2]
    groups = [{"params": matrices[:1]}, {"params": matrices[1:]}]
    optimizer: Any = aliquot.Muon(model, params=groups)
    model(torch.ones(1, 8)).sum().backward()
    for key in ("lr", "eps", "weight_decay", "momentum"):
        for value in NO_NUMBERS:
            step_and_refuse(optimizer, key, value, "Muon")
    for value in ((1.0, math.nan, 2.0), (1.0,), None):
        step_and_refuse(optimizer, "ns_coefficients", value, "Muon")
    for value in (2.5, -1, "x"):
        step_and_refuse(optimizer, "ns_steps", value, "Muon")
    optimizer.step()


def test_those_of_muon_too() -> None:
    run_ranks(1, write_later_for_muon)


def make(rank: int) -> None:
    model = aliquot.shard(built(CASES["plain"]))
    for lr in (math.inf, math.nan, "x"):
        with pytest.raises(aliquot.InvalidArgument, match=re.escape(f"AdamW: lr is {lr!r} in param_groups[0]; set ")):
            aliquot.AdamW(model, lr=lr)  # type: ignore[arg-type]
    first, *rest = model.parameters()
    optimizer = aliquot.AdamW(model, params=[first])
    with pytest.raises(aliquot.InvalidArgument, match=re.escape("AdamW: eps is nan in param_groups[1]")):
        optimizer.add_param_group({"params": rest, "eps": math.nan})
    assert len(optimizer.param_groups) == 1


def test_an_optimizer_is_not_made_with_them() -> None:
    run_ranks(1, make)
