"""Models of Transformers from local files: built as usual, or on the meta device and filled tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import aliquot
import pytest
import torch
import transformers
from architectures import ARCHITECTURES
from ranks import SHARED_MEMORY, SHARED_MEMORY_POISONED, Transport, run_ranks
from safetensors import safe_open
from torch import Tensor, nn
from training import ADAMW, MAX_NORM, Reference, Turn, assert_same_bits, assert_same_weights, built, relative_error

WORLD_SIZE = 2
MODELS = {
    "Llama": transformers.LlamaForCausalLM,
    "GPT-2, tied": transformers.GPT2LMHeadModel,
    "T5, shared embedding": transformers.T5ForConditionalGeneration,
}
WAYS = [(1, SHARED_MEMORY), (3, SHARED_MEMORY_POISONED)]


class Tensors(Mapping[str, Tensor]):
    """Of a file, each read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.file = safe_open(folder / "model.safetensors", "pt")

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self.file.get_tensor(name)
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self.file.keys()  # noqa: SIM118

    def __iter__(self) -> Iterator[str]:
        return iter(self.file.keys())

    def __len__(self) -> int:
        return len(self.file.keys())


def on_cpu(name: str, stage: int, folder: Path) -> nn.Module:
    model: nn.Module = MODELS[name].from_pretrained(folder)
    return aliquot.shard(model.train(), stage=stage)


def on_meta(name: str, stage: int, folder: Path) -> nn.Module:
    with torch.device("meta"):
        model = MODELS[name](MODELS[name].config_class.from_pretrained(folder))
    sharded = aliquot.shard(model, stage=stage)
    aliquot.load_full_state_dict(sharded, Tensors(folder))
    return sharded


def train(rank: int, name: str, stage: int, folder: Path, meta: bool) -> None:
    case = ARCHITECTURES[name]
    model = (on_meta if meta else on_cpu)(name, stage, folder)
    optimizer = aliquot.AdamW(model, **{**ADAMW, "eps": 1e-4}, max_grad_norm=MAX_NORM)
    reference = Reference(case, WORLD_SIZE, eps=1e-4)
    for step in range(3):
        optimizer.zero_grad()
        seen, expected = case.run(model, Turn(rank, step)), reference.step(step)[rank]
        assert relative_error(seen, expected) < 1e-6
        optimizer.step()
    assert_same_weights(aliquot.full_state_dict(model, all_ranks=True), reference.weights())


@pytest.mark.parametrize(("stage", "transport"), WAYS, ids=str)
@pytest.mark.parametrize("meta", [False, True], ids=["cpu", "meta"])
@pytest.mark.parametrize("name", MODELS)
def test_trains_from_local_files(name: str, meta: bool, stage: int, transport: Transport, tmp_path: Path) -> None:
    built(ARCHITECTURES[name]).save_pretrained(tmp_path)
    run_ranks(WORLD_SIZE, train, name, stage, tmp_path, meta, transport=transport)


def initialize(rank: int, name: str) -> dict[str, Tensor]:
    torch.manual_seed(rank)
    with torch.device("meta"):
        model = MODELS[name](built(ARCHITECTURES[name]).config)
    return aliquot.full_state_dict(aliquot.shard(model), all_ranks=True)


@pytest.mark.parametrize("name", MODELS)
def test_on_the_meta_device_all_values_are_made(name: str) -> None:
    one, other = run_ranks(WORLD_SIZE, initialize, name)
    assert_same_bits(one, other)
    assert all(value.isfinite().all() for value in one.values())


def test_on_the_meta_device_a_model_initializes_itself() -> None:
    """As large as the model makes them, and not as `reset_parameters` of torch's layers does."""
    name = "Llama"
    torch.manual_seed(0)
    usual = MODELS[name](built(ARCHITECTURES[name]).config).state_dict()
    for state in run_ranks(WORLD_SIZE, initialize, name):
        assert list(state) == list(usual)
        for key, value in usual.items():
            spreads = state[key].std(correction=0).item(), value.std(correction=0).item()
            assert spreads[0] == pytest.approx(spreads[1], rel=0.5, abs=1e-6), key


class Forgetful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def reset_parameters(self) -> None:
        pass


def forget(_: int) -> None:
    with torch.device("meta"):
        model = Forgetful()
    with pytest.raises(aliquot.InvalidArgument, match=r"weight of a Forgetful.*reset_parameters"):
        aliquot.shard(model)


def test_a_tensor_that_stays_unfilled_is_named() -> None:
    run_ranks(1, forget)
