"""Whole weights out of a sharded model and into one: full_state_dict, load_full_state_dict, gathered."""

from __future__ import annotations

from typing import Any

import aliquot
import pytest
import torch
from cases import CASES
from ranks import TRANSPORTS, Transport, run_ranks
from refusals import refused
from torch import Tensor, nn
from training import STAGES, Reference, Sharded, assert_same_bits, assert_same_weights, built

CASE = CASES["tied_weights"]
NAME = "blocks.1.up.weight"
WORLD_SIZE = 2


def halved(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: 0.5 * value for name, value in state.items()}


def export(rank: int, stage: int) -> None:
    for name in ("tied_weights", "batch_norm", "odd_sizes", "frozen"):
        sharded, expected = Sharded(CASES[name], stage), built(CASES[name]).state_dict()
        assert_same_bits(aliquot.full_state_dict(sharded.model, all_ranks=True), expected)
        state = aliquot.full_state_dict(sharded.model)
        assert_same_bits(state, expected if rank == 0 else {})
        assert all(value.device.type == "cpu" and type(value) is Tensor for value in state.values())


def own_memory(rank: int, stage: int) -> None:
    """A state dict is a snapshot: training on does not change it, nor does writing to it change the model."""
    sharded = Sharded(CASE, stage)
    state, expected = sharded.weights(), built(CASE).state_dict()
    sharded.step(rank, 0)
    assert_same_bits(state, expected)
    trained = sharded.weights()
    for value in sharded.weights().values():
        value.zero_()
    assert_same_bits(sharded.weights(), trained)


def round_trip(rank: int, stage: int) -> None:
    """Loaded weights train on like the reference's; the optimizer's states stay."""
    sharded, reference = Sharded(CASE, stage), Reference(CASE, WORLD_SIZE)
    sharded.step(rank, 0)
    reference.step(0)
    state = halved(sharded.weights())
    aliquot.load_full_state_dict(sharded.model, state)
    assert_same_bits(sharded.weights(), state)
    for replica in reference.replicas:
        replica.load_state_dict(halved(replica.state_dict()))
    sharded.step(rank, 1)
    reference.step(1)
    assert_same_weights(sharded.weights(), reference.weights())


def load_from_rank_0(rank: int, stage: int) -> None:
    """Buffers differ from rank to rank before; rank 0's count, and other ranks need not have any of it."""
    sharded, reference = Sharded(CASES["batch_norm"], stage), Reference(CASES["batch_norm"], WORLD_SIZE)
    sharded.step(rank, 0)
    reference.step(0)
    aliquot.load_full_state_dict(sharded.model, aliquot.full_state_dict(sharded.model))
    assert_same_weights(sharded.weights(), reference.weights(rank=0))


def load_nonsense(rank: int, stage: int) -> None:
    sharded, state = Sharded(CASE, stage), built(CASE).state_dict()
    without = {name: value for name, value in halved(state).items() if name != NAME}
    for wrong in (without, without | {NAME: torch.ones(3)}, halved(state) | {"stranger": torch.ones(3)}):
        with pytest.raises(aliquot.InvalidArgument, match=f"{NAME}|stranger"):
            aliquot.load_full_state_dict(sharded.model, wrong)
        assert_same_bits(sharded.weights(), state)


def read_gathered(rank: int, stage: int) -> None:
    sharded, expected = Sharded(CASE, stage), built(CASE).state_dict()
    with aliquot.gathered(sharded.model):
        assert_same_bits({name: p.detach().clone() for name, p in sharded.model.state_dict().items()}, expected)
    some = [sharded.model.get_parameter(NAME), sharded.model.embedding.weight]
    with aliquot.gathered(some):
        assert torch.equal(some[0], expected[NAME])
        assert torch.equal(some[1], expected["embedding.weight"])


def write_gathered(rank: int, stage: int) -> None:
    sharded, expected = Sharded(CASE, stage), built(CASE)
    for model in (sharded.model, expected):
        with aliquot.gathered(model, write=True) if model is sharded.model else torch.no_grad(), torch.no_grad():
            model.get_parameter(NAME).mul_(0.5)
            model.embedding.weight[0] = 1.0
            nn.init.ones_(model.blocks[0].down.bias)
    assert_same_bits(sharded.weights(), expected.state_dict())


def write_without_saying_so(rank: int, stage: int) -> None:
    sharded = Sharded(CASE, stage)
    expected = built(CASE).get_parameter(NAME)

    def write() -> None:
        with aliquot.gathered(sharded.model), torch.no_grad():
            sharded.model.get_parameter(NAME).mul_(0.5)

    if not refused(write):
        assert torch.equal(sharded.weights()[NAME], 0.5 * expected)


def train_while_gathered(rank: int, stage: int) -> None:
    """Evaluation inside `gathered` is fine; what cannot be right there is refused."""
    sharded, reference = Sharded(CASE, stage), Reference(CASE, WORLD_SIZE)

    def step() -> None:
        with aliquot.gathered(sharded.model):
            sharded.step(rank, 0)

    if not refused(step):
        reference.step(0)
        assert_same_weights(sharded.weights(), reference.weights())


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    "act",
    [
        export,
        own_memory,
        round_trip,
        load_from_rank_0,
        load_nonsense,
        read_gathered,
        write_gathered,
        write_without_saying_so,
        train_while_gathered,
    ],
    ids=lambda act: act.__name__,
)
def test_whole_weights(act: Any, stage: int, transport: Transport) -> None:
    run_ranks(WORLD_SIZE, act, stage, transport=transport)
