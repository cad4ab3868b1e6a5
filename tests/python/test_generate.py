"""`generate()` of a model of Transformers, sharded, while it trains: each rank's own prompt, and its own length."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import aliquot
import pytest
import torch
from architectures import ARCHITECTURES, TOKENS
from ranks import PROCESS_GROUP, SHARED_MEMORY, SHARED_MEMORY_POISONED, Transport, run_ranks
from torch import Tensor
from training import Reference, Sharded, Turn, assert_same_weights

WORLD_SIZE = 2
MODELS = ("Llama", "GPT-2, tied", "T5, shared embedding")


def lengths(rank: int) -> tuple[int, int]:
    """Of the prompt and of what is generated."""
    return 3 + rank, 4 + 5 * rank


def alike(rank: int) -> tuple[int, int]:
    return 3, 5


def generate(model: Any, rank: int, step: int, ask: Callable[[int], tuple[int, int]]) -> Tensor:
    prompt, new = ask(rank)
    tokens = 2 + Turn(rank, step).tokens(TOKENS - 2, 2, prompt)
    made: Tensor = model.generate(tokens, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)
    return made


def train_and_generate(rank: int, name: str, stage: int, ask: Callable[[int], tuple[int, int]], whole: bool) -> int:
    """How many units were gathered to generate."""
    case = ARCHITECTURES[name]
    sharded, reference = Sharded(case, stage), Reference(case, WORLD_SIZE)
    for step in range(3):
        sharded.step(rank, step), reference.step(step)
        with aliquot.gathered(sharded.model) if whole else nullcontext():
            before = aliquot.stats(sharded.model).gathers
            made = generate(sharded.model, rank, step, ask)
            gathers = aliquot.stats(sharded.model).gathers - before
        assert torch.equal(made, generate(reference.replicas[rank], rank, step, ask))
    assert_same_weights(sharded.weights(), reference.weights(), 1e-4)
    return gathers


@pytest.mark.parametrize("transport", [SHARED_MEMORY, SHARED_MEMORY_POISONED], ids=str)
@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_with_units_streamed(name: str, stage: int, transport: Transport) -> None:
    run_ranks(WORLD_SIZE, train_and_generate, name, stage, lengths, False, transport=transport)


@pytest.mark.parametrize("transport", [SHARED_MEMORY, SHARED_MEMORY_POISONED, PROCESS_GROUP], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_with_all_gathered_once(name: str, transport: Transport) -> None:
    gathers = run_ranks(WORLD_SIZE, train_and_generate, name, 3, lengths, True, transport=transport)
    assert gathers == [0, 0]


def test_ranks_that_gather_together_may_stream_alike() -> None:
    run_ranks(WORLD_SIZE, train_and_generate, "Llama", 3, alike, False, transport=PROCESS_GROUP)


def stream_differently(rank: int) -> str:
    with pytest.raises(aliquot.CommunicatorError) as caught:
        train_and_generate(rank, "Llama", 3, lengths, False)
    return str(caught.value)


def test_ranks_that_gather_together_may_not_stream_differently() -> None:
    for text in run_ranks(WORLD_SIZE, stream_differently, transport=PROCESS_GROUP):
        assert "rank 0" in text, text
