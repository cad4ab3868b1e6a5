"""Any number of ranks, stage and form of masters to any other: parameters, states and counts come back bit by bit."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import aliquot
import pytest
import torch
from checkpoints import assert_same_content, content_of, everything, manifest_of, tensors_of, train
from ranks import PROCESS_GROUP, SHARED_MEMORY, TRANSPORTS, Transport, run_ranks

WORLDS = (1, 2, 3, 4)
STAGES = (1, 2, 3)
PRECISIONS = {
    "fp32": "fp32",
    "split": "bf16",
    "master": aliquot.Precision("bf16", master="fp32"),
    "fp16": "fp16",
}


def save(rank: int, directory: Path, stage: int, precision: Any = None) -> None:
    model, optimizer = everything(stage, precision=precision)
    train(model, optimizer, rank, range(3))
    aliquot.save_checkpoint(directory, model, optimizer, step=3)


def load_and_save(rank: int, sources: list[Path], directory: Path, stage: int, precision: Any = None) -> None:
    """Every source by one model, which has been trained to something else."""
    model, optimizer = everything(stage, seed=1, precision=precision, lr=1.0)
    for source in sources:
        train(model, optimizer, rank, range(10, 11))
        assert aliquot.load_checkpoint(source, model, optimizer).step == 3
        aliquot.save_checkpoint(directory / source.name, model, optimizer, step=3)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    directory = tmp_path_factory.mktemp("saved")
    for world_size, stage in product(WORLDS, STAGES):
        run_ranks(world_size, save, directory / f"{world_size}_{stage}", stage)
    return sorted(directory.iterdir())


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("world_size", WORLDS)
def test_any_number_of_ranks_and_stage_to_any_other(
    world_size: int, stage: int, saved: list[Path], tmp_path: Path
) -> None:
    run_ranks(world_size, load_and_save, saved, tmp_path, stage)
    for source in saved:
        actual, expected = content_of(tmp_path / source.name / "step_3"), content_of(source / "step_3")
        assert_same_content(actual, expected, but="buffer@")
        own = [key for key in actual["tensors"] if key.startswith("buffer@")]
        ranks = manifest_of(source / "step_3")["world_size"]
        assert len(own) == ((world_size - 1) if ranks == world_size else 0), "the ranks' own running statistics"


@pytest.mark.parametrize("stage", [0, 3])
@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
def test_any_transport_and_stage_0(transport: Transport, stage: int, tmp_path: Path) -> None:
    other = PROCESS_GROUP if transport == SHARED_MEMORY else SHARED_MEMORY
    run_ranks(2, save, tmp_path / "here", stage, transport=transport)
    run_ranks(2, load_and_save, [tmp_path / "here"], tmp_path / "there", 3 - stage, transport=other)
    content = [content_of(path / "step_3") for path in (tmp_path / "here", tmp_path / "there" / "here")]
    assert_same_content(content[1], content[0])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_any_form_of_masters_to_any_other(precision: str, tmp_path: Path) -> None:
    """All have fp32 values: they are what is saved."""
    run_ranks(2, save, tmp_path / "source", 3, PRECISIONS[precision])
    run_ranks(1, load_in_every_form, tmp_path)
    expected = content_of(tmp_path / "source" / "step_3")
    for other in PRECISIONS:
        actual = content_of(tmp_path / other / "source" / "step_3")
        assert_same_content(trained_tensors(actual), trained_tensors(expected))


def load_in_every_form(rank: int, directory: Path) -> None:
    for other, value in PRECISIONS.items():
        load_and_save(rank, [directory / "source"], directory / other, 3, value)


def trained_tensors(content: dict[str, Any]) -> dict[str, Any]:
    """Without what is frozen, which has no master, and the ranks' own buffers."""
    tensors = content["tensors"].items()
    return content | {"tensors": {k: v for k, v in tensors if not k.startswith("buffer@") and "blocks.1" not in k}}


def values_are(rank: int, directory: Path, stage: int) -> None:
    model, optimizer = everything(stage)
    train(model, optimizer, rank, range(2))
    aliquot.save_checkpoint(directory, model, optimizer, step=2)
    expected = aliquot.full_state_dict(model, all_ranks=True)
    if rank == 0:
        tensors, manifest = tensors_of(directory / "step_2"), manifest_of(directory / "step_2")
        names = {name: manifest["tied"].get(name, name) for name in expected}
        found = {name: tensors.get(f"param/{first}", tensors.get(f"buffer/{first}")) for name, first in names.items()}
        assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
        assert {key.split("/")[0] for key in tensors} == {"param", "buffer", "optimizer", "buffer@1"}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_files_hold_what_a_state_dict_says(stage: int, tmp_path: Path) -> None:
    run_ranks(2, values_are, tmp_path, stage)


def go_on(rank: int, directory: Path, stage: int) -> None:
    """On as many ranks as saved, what follows is bitwise the same: the counts and buffers are right too."""
    model, optimizer = everything(stage)
    train(model, optimizer, rank, range(3))
    aliquot.save_checkpoint(directory, model, optimizer, step=3)
    losses = train(model, optimizer, rank, range(3, 6))
    expected = aliquot.full_state_dict(model, all_ranks=True)
    other, other_optimizer = everything(stage, seed=1, lr=1.0)
    aliquot.load_checkpoint(directory, other, other_optimizer)
    assert torch.equal(torch.stack(train(other, other_optimizer, rank, range(3, 6))), torch.stack(losses))
    actual = aliquot.full_state_dict(other, all_ranks=True)
    assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []
    assert other_optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    assert aliquot.stats(other).steps == 6


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_training_goes_on_as_if_nothing_had_happened(stage: int, transport: Transport, tmp_path: Path) -> None:
    run_ranks(2, go_on, tmp_path, stage, transport=transport)
