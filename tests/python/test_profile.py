"""aliquot.profile: a trace that the viewers can read, and sums that agree with it, on every transport."""

from __future__ import annotations

from pathlib import Path

import aliquot
import pytest
from cases import plain
from models import Chain
from ranks import TRANSPORTS, Transport, run_ranks
from traces import TRACKS, outermost, read, seconds
from training import STAGES, Case, Sharded

WORLD_SIZE = 2
STEPS = 3

CASE = Case(Chain, plain)


def profiled(rank: int, path: str, stage: int) -> tuple[aliquot.Profile, list[str]]:
    sharded = Sharded(CASE, stage)
    sharded.step(rank, 0)
    with aliquot.profile(sharded.model, path) as profile:
        for step in range(STEPS):
            sharded.step(rank, step)
    sharded.step(rank, STEPS)
    return profile, [unit.name for unit in sharded.model._aliquot.units]


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
@pytest.mark.parametrize("stage", STAGES)
def test_each_rank_writes_a_trace_that_names_the_units(tmp_path: Path, stage: int, transport: Transport) -> None:
    outcomes = run_ranks(WORLD_SIZE, profiled, str(tmp_path / "made" / "trace.json"), stage, transport=transport)
    for rank, (profile, units) in enumerate(outcomes):
        assert profile.path == tmp_path / "made" / f"trace.{rank}.json"
        slices, process = read(profile)
        assert process == f"rank {rank}"
        assert list(slices) == TRACKS
        assert {event["name"] for event in slices["gathers"]} == set(units), "at stage 0 the gradients"
        assert sorted(event["name"] for event in slices["packs"]) == sorted(units * STEPS)
        assert {event["name"] for event in slices["reduces"]} == set(units)
        assert [event["name"] for event in outermost(slices["steps"])] == ["step"] * STEPS
        assert {event["name"] for event in slices["steps"]} == {"step", *units}
        assert {event["name"] for event in slices["exposed"]} == {"step", "end of backward", *units}
        assert all(event["args"]["bytes"] > 0 for event in slices["packs"] + slices["reduces"])


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
def test_the_sums_are_those_of_the_trace(tmp_path: Path, transport: Transport) -> None:
    for profile, units in run_ranks(WORLD_SIZE, profiled, str(tmp_path / "trace.json"), 3, transport=transport):
        slices, _ = read(profile)
        assert list(profile.times) == ["gather", "pack", "reduce", "step"]
        for activity, times in profile.times.items():
            track = slices[f"{activity}s"]
            assert times.bytes == sum(event["args"]["bytes"] for event in track)
            assert times.count == len(list(outermost(track)))
            assert 0 <= times.exposed <= times.seconds <= profile.seconds
            assert times.seconds >= seconds(track) - 1e-6
        assert profile.exposed == pytest.approx(seconds(slices["exposed"]), abs=1e-6)
        assert profile.exposed <= profile.seconds
        assert profile.times["pack"].count == STEPS * len(units)
        table = str(profile).splitlines()
        assert [line.split()[0] for line in table] == ["rank", *profile.times, "all"]
        assert all(str(times.count) in line for times, line in zip(profile.times.values(), table[1:], strict=False))


def profile_without_a_file(rank: int) -> None:
    sharded = Sharded(CASE, 3)
    with aliquot.profile(sharded.model) as profile:
        sharded.step(rank, 0)
    assert profile.path is None
    assert profile.times["step"].count == 1
    assert all(times.exposed == times.seconds for times in profile.times.values()), "on CPUs the caller does all work"


def test_without_a_file_there_are_the_sums() -> None:
    run_ranks(WORLD_SIZE, profile_without_a_file)


def profile_alone(rank: int, folder: str) -> None:
    sharded = Sharded(CASE, 3)
    with aliquot.profile(sharded.model, Path(folder, "alone.json")) as profile:
        sharded.step(rank, 0)
    assert profile.path == Path(folder, "alone.json")
    assert read(profile)[1] == "rank 0"


def test_a_rank_alone_writes_the_file_itself(tmp_path: Path) -> None:
    run_ranks(1, profile_alone, str(tmp_path), transport=None)


def profile_one_rank_only(rank: int, path: str) -> bool:
    sharded = Sharded(CASE, 3)
    sharded.step(rank, 0)
    if rank == 0:
        with aliquot.profile(sharded.model, path):
            sharded.step(rank, 1)
    else:
        sharded.step(rank, 1)
    return True


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
def test_ranks_need_not_profile_together(tmp_path: Path, transport: Transport) -> None:
    assert all(run_ranks(WORLD_SIZE, profile_one_rank_only, str(tmp_path / "trace.json"), transport=transport))
    assert [file.name for file in tmp_path.iterdir()] == ["trace.0.json"]


def raise_after_a_step(sharded: Sharded, rank: int) -> None:
    sharded.step(rank, 0)
    raise ZeroDivisionError


def profile_what_raises(rank: int, path: str) -> None:
    sharded = Sharded(CASE, 3)
    with pytest.raises(ZeroDivisionError), aliquot.profile(sharded.model, path):
        raise_after_a_step(sharded, rank)
    with aliquot.profile(sharded.model) as profile:
        with pytest.raises(aliquot.InvalidArgument, match="profiled already"), aliquot.profile(sharded.model):
            pytest.fail("entered")
        sharded.step(rank, 1)
    assert profile.times["step"].count == 1


def test_a_block_that_raises_ends_its_profile_and_writes_nothing(tmp_path: Path) -> None:
    run_ranks(WORLD_SIZE, profile_what_raises, str(tmp_path / "trace.json"))
    assert list(tmp_path.iterdir()) == []
