"""aliquot.profile on GPUs, where gathers and reductions go on beside the model and only waits for them are exposed."""

from __future__ import annotations

from pathlib import Path

import aliquot
import pytest
import torch
from cases import language, plain
from models import WIDTH, Chain, LanguageModel
from ranks import Transport, run_ranks
from torch import Tensor
from traces import TRACKS, outermost, read
from training import STAGES, Case, Sharded, assert_same_bits

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("one_gpu")]

STEPS = 3
CASE = Case(LanguageModel, language)


def profiled(rank: int, path: str, stage: int) -> tuple[aliquot.Profile, list[str]]:
    sharded = Sharded(CASE, stage)
    sharded.step(rank, 0)
    with aliquot.profile(sharded.model, path) as profile:
        for step in range(STEPS):
            sharded.step(rank, step)
    return profile, [unit.name for unit in sharded.model._aliquot.units]


@pytest.mark.parametrize("stage", STAGES)
def test_the_trace_names_the_units_and_its_slices_nest(tmp_path: Path, stage: int, transport: Transport) -> None:
    for profile, units in run_ranks(2, profiled, str(tmp_path / "trace.json"), stage, transport=transport):
        slices, process = read(profile)
        assert process == f"rank {profile.rank}"
        assert list(slices) == TRACKS
        assert all(len(list(outermost(track))) > 0 for track in slices.values())
        assert {event["name"] for event in slices["gathers"]} == set(units), "at stage 0 the gradients"
        for track in ("packs", "reduces"):
            assert sorted(event["name"] for event in slices[track]) == sorted(units * STEPS)
        assert [event["name"] for event in outermost(slices["steps"])] == ["step"] * STEPS
        assert "end of backward" in {event["name"] for event in slices["exposed"]}


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_exposed_is_part_of_the_whole(tmp_path: Path, stage: int, transport: Transport) -> None:
    for profile, _ in run_ranks(2, profiled, str(tmp_path / "trace.json"), stage, transport=transport):
        for activity, times in profile.times.items():
            assert times.exposed <= times.seconds <= profile.seconds
            on_the_models_stream = activity in ("pack", "step")
            assert (times.exposed == times.seconds) or not on_the_models_stream, activity
        assert profile.times["step"].count == STEPS
        assert 0 < profile.exposed <= profile.seconds


def step_on(sharded: Sharded, inputs: Tensor) -> None:
    """Inputs that are there: to copy them from the host would wait for the GPU."""
    sharded.optimizer.zero_grad()
    sharded.model(inputs).square().mean().backward()
    sharded.optimizer.step()


def profile_behind_a_busy_gpu(rank: int) -> tuple[bool, dict[str, Tensor], dict[str, Tensor]]:
    sharded, unprofiled = Sharded(Case(Chain, plain), 3), Sharded(Case(Chain, plain), 3)
    inputs = torch.full((4, WIDTH), rank + 1.0, device="cuda")
    for _ in range(2):
        step_on(sharded, inputs)
        step_on(unprofiled, inputs)
    torch.cuda.synchronize()
    with aliquot.profile(sharded.model):
        torch.cuda._sleep(4_000_000_000)
        step_on(sharded, inputs)
        host_was_ahead = not torch.cuda.current_stream().query()
    step_on(unprofiled, inputs)
    return host_was_ahead, sharded.weights(), unprofiled.weights()


def test_the_host_does_not_wait_in_a_profiled_step_and_no_bit_changes(transport: Transport) -> None:
    for host_was_ahead, weights, expected in run_ranks(2, profile_behind_a_busy_gpu, transport=transport):
        assert host_was_ahead
        assert_same_bits(weights, expected)
