"""Models and checkpoints to Hugging Face's and torch.distributed.checkpoint's folders, and back."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aliquot
import pytest
import torch
import torch.distributed.checkpoint as dcp
import transformers
from aliquot.__main__ import main
from architectures import ARCHITECTURES
from checkpoints import Everything, bits, everything, train
from ranks import PROCESS_GROUP, SHARED_MEMORY, SHARED_MEMORY_POISONED, Transport, run_ranks
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from training import ADAMW, Turn, assert_same_bits, built

WORLD_SIZE = 2
MODELS = {
    "Llama": transformers.LlamaForCausalLM,
    "GPT-2, tied": transformers.GPT2LMHeadModel,
    "T5, shared embedding": transformers.T5ForConditionalGeneration,
}
WAYS = [(1, SHARED_MEMORY), (3, SHARED_MEMORY_POISONED), (3, PROCESS_GROUP)]
TOKENS = torch.arange(12).view(2, 6)


def logits(model: Any) -> Tensor:
    given = {"decoder_input_ids": TOKENS} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        out: Tensor = model.eval()(input_ids=TOKENS, **given).logits
    return out


def trained(rank: int, name: str, stage: int) -> Any:
    case = ARCHITECTURES[name]
    model = aliquot.shard(built(case), stage=stage)
    optimizer = aliquot.AdamW(model, **ADAMW)
    case.run(model, Turn(rank, 0))
    optimizer.step()
    return model


def save_both(rank: int, name: str, stage: int, folder: Path) -> dict[str, Tensor]:
    model = trained(rank, name, stage)
    aliquot.save_checkpoint(folder / "checkpoints", model, step=1)
    aliquot.save_pretrained(model, folder / "live", max_shard_size="10kB")
    return aliquot.full_state_dict(model)


@pytest.mark.parametrize(("stage", "transport"), WAYS, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_transformers_reads_what_was_saved(name: str, stage: int, transport: Transport, tmp_path: Path) -> None:
    saved, _ = run_ranks(WORLD_SIZE, save_both, name, stage, tmp_path, transport=transport)
    assert main(["checkpoint", "export", str(tmp_path / "checkpoints"), str(tmp_path / "exported")]) == 0
    (tmp_path / "exported" / "config.json").write_text((tmp_path / "live" / "config.json").read_text())
    expected: Any = built(ARCHITECTURES[name])
    expected.load_state_dict(saved)
    assert len(list((tmp_path / "live").glob("model-*-of-*.safetensors"))) > 1
    for folder in ("live", "exported"):
        model = MODELS[name].from_pretrained(tmp_path / folder)
        assert torch.equal(logits(model), logits(expected)), folder
        assert_same_bits(model.state_dict(), saved)


def test_the_folder_is_as_transformers_writes_it(tmp_path: Path) -> None:
    """But for how tensors are spread over files."""

    def save(rank: int) -> dict[str, Tensor]:
        aliquot.save_pretrained(
            model := aliquot.shard(built(ARCHITECTURES["Llama"])), tmp_path / "ours", max_shard_size=9000
        )
        return aliquot.full_state_dict(model)

    run_ranks(WORLD_SIZE, save)
    theirs: Any = built(ARCHITECTURES["Llama"])
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=9000)
    one, other = (json.loads((tmp_path / by / "model.safetensors.index.json").read_text()) for by in ("ours", "theirs"))
    assert one["weight_map"].keys() == other["weight_map"].keys()
    assert one["metadata"]["total_size"] == other["metadata"]["total_size"]
    for name, base in one["weight_map"].items():
        tensors = load_file(tmp_path / "ours" / base)
        assert torch.equal(tensors[name], theirs.state_dict()[name])
        assert sum(value.nbytes for value in tensors.values()) <= 9000
    configs = [json.loads((tmp_path / by / "config.json").read_text()) for by in ("ours", "theirs")]
    assert configs[0] == configs[1]


def load(rank: int, name: str, stage: int, folder: Path, meta: bool) -> dict[str, Tensor]:
    with torch.device("meta" if meta else "cpu"):
        model = MODELS[name](built(ARCHITECTURES[name]).config)
    aliquot.load_pretrained(sharded := aliquot.shard(model, stage=stage), folder)
    return aliquot.full_state_dict(sharded, all_ranks=True)


@pytest.mark.parametrize(("stage", "transport"), WAYS, ids=str)
@pytest.mark.parametrize("size", ["10kB", "5GB"])
@pytest.mark.parametrize("name", MODELS)
def test_what_transformers_saved_is_loaded(
    name: str, size: str, stage: int, transport: Transport, tmp_path: Path
) -> None:
    theirs: Any = built(ARCHITECTURES[name])
    theirs.save_pretrained(tmp_path, max_shard_size=size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (size == "10kB")
    for state in run_ranks(WORLD_SIZE, load, name, stage, tmp_path, stage == 3, transport=transport):
        assert_same_bits(state, theirs.state_dict())


def state_of_everything(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return Everything().state_dict()


def there_and_back(
    rank: int, folder: Path, save: Callable[..., None], load: Callable[..., None], precision: Any
) -> None:
    model, optimizer = everything(3, precision=precision)
    train(model, optimizer, rank, range(2))
    save(model, folder / "out")
    other, _ = everything(2, seed=1, precision=precision)
    load(other, folder / "out")
    for name, value in aliquot.full_state_dict(model).items():
        assert torch.equal(bits(aliquot.full_state_dict(other)[name]), bits(value)), name


WAYS_OUT_AND_IN = [(aliquot.save_pretrained, aliquot.load_pretrained), (aliquot.save_dcp, aliquot.load_dcp)]


@pytest.mark.parametrize(("save", "load"), WAYS_OUT_AND_IN, ids=["safetensors", "dcp"])
@pytest.mark.parametrize("precision", [None, "bf16"])
def test_every_kind_of_parameter_and_buffer_comes_back(
    save: Callable[..., None], load: Callable[..., None], precision: Any, tmp_path: Path
) -> None:
    run_ranks(1, there_and_back, tmp_path, save, load, precision)


def test_masters_take_all_bits_of_what_is_loaded(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        model, _ = everything(3, seed=1, precision="bf16")
        aliquot.load_pretrained(model, tmp_path / "given.safetensors")
        aliquot.save_checkpoint(tmp_path, model, step=1)

    given = state_of_everything(0)
    del given["head.weight"]
    save_file(given, tmp_path / "given.safetensors")
    run_ranks(WORLD_SIZE, work)
    assert main(["checkpoint", "export", str(tmp_path), str(tmp_path / "out")]) == 0
    found = load_file(tmp_path / "out" / "model.safetensors")
    trainable = {name: value for name, value in given.items() if not name.startswith("blocks.1")}
    assert_same_bits({name: found[name] for name in trainable}, trainable)


def test_floating_point_values_are_cast_when_asked(tmp_path: Path) -> None:
    def work(rank: int) -> dict[str, Tensor]:
        model, _ = everything(3)
        aliquot.save_pretrained(model, tmp_path / "live", dtype=torch.bfloat16)
        aliquot.save_checkpoint(tmp_path, model, step=1)
        return aliquot.full_state_dict(model)

    state, _ = run_ranks(WORLD_SIZE, work)
    assert main(["checkpoint", "export", str(tmp_path), str(tmp_path / "exported"), "--dtype", "bf16"]) == 0
    for folder in ("live", "exported"):
        found = load_file(tmp_path / folder / "model.safetensors")
        assert found.keys() == state.keys() - {"head.weight"}
        for name, value in found.items():
            expected = state[name].bfloat16() if state[name].dtype == torch.float32 else state[name]
            assert value.dtype == expected.dtype
            assert torch.equal(bits(value), bits(expected)), name


def test_names_may_be_changed_on_the_way(tmp_path: Path) -> None:
    def work(rank: int) -> dict[str, Tensor]:
        def rename(name: str) -> str | None:
            return None if name == "surplus" else name.removeprefix("wrapped.")

        model = aliquot.shard(nn.Linear(3, 2))
        aliquot.load_pretrained(model, tmp_path, rename=rename)
        return aliquot.full_state_dict(model, all_ranks=True)

    state = {"weight": torch.randn(2, 3), "bias": torch.randn(2)}
    wrapped = {f"wrapped.{name}": value for name, value in state.items()}
    save_file({**wrapped, "surplus": torch.ones(1)}, tmp_path / "model.safetensors")
    for found in run_ranks(WORLD_SIZE, work):
        assert_same_bits(found, state)


def read_by_torch(folder: Path, like: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    state = {prefix + name: torch.full_like(value, 1) for name, value in like.items()}
    dcp.load(state, checkpoint_id=folder, no_dist=True)
    return {name.removeprefix(prefix): value for name, value in state.items()}


def test_torch_reads_what_was_saved(tmp_path: Path) -> None:
    def work(rank: int) -> dict[str, Tensor]:
        model, optimizer = everything(3)
        train(model, optimizer, rank, range(1))
        aliquot.save_checkpoint(tmp_path, model, optimizer, step=7)
        aliquot.save_dcp(model, tmp_path / "live", prefix="model.")
        return aliquot.full_state_dict(model)

    state, _ = run_ranks(WORLD_SIZE, work)
    del state["head.weight"]
    command = ["checkpoint", "export", str(tmp_path), str(tmp_path / "exported"), "--format", "dcp"]
    assert main([*command, "--prefix", "model."]) == 0
    for folder in ("live", "exported"):
        found = read_by_torch(tmp_path / folder, state, "model.")
        for name, value in state.items():
            if folder == "live" or not name.startswith("running."):  # of rank 0 there
                assert torch.equal(bits(found[name]), bits(value)), (folder, name)


@pytest.mark.parametrize("by_name", [False, True], ids=["by_value", "by_name"])
def test_what_torch_saved_from_one_process_is_loaded(
    by_name: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Versions of Python 3.11 differ in how they pickle an enumeration's members."""

    def work(rank: int) -> dict[str, Tensor]:
        model, _ = everything(3, seed=1)
        aliquot.load_dcp(model, tmp_path, prefix="model.")
        return aliquot.full_state_dict(model, all_ranks=True)

    def reduced(member: Any, protocol: Any) -> Any:
        return (getattr, (type(member), member.name)) if by_name else (type(member), (member.value,))

    monkeypatch.setattr(enum.Enum, "__reduce_ex__", reduced)
    state = state_of_everything(0)
    dcp.save({"model": state, "optimizer": {"step": 3, "exp_avg": torch.ones(3)}}, checkpoint_id=tmp_path, no_dist=True)
    for found in run_ranks(WORLD_SIZE, work):
        assert_same_bits(found, state)


def test_what_torch_saved_from_several_ranks_is_loaded(tmp_path: Path) -> None:
    whole = {"weight": torch.randn(7, 12), "bias": torch.randn(7)}

    def save_sharded(rank: int) -> None:
        mesh = init_device_mesh("cpu", (WORLD_SIZE,))
        cut = {"weight": distribute_tensor(whole["weight"], mesh, [Shard(1)])}
        cut["bias"] = distribute_tensor(whole["bias"], mesh, [Shard(0)])
        dcp.save(cut, checkpoint_id=tmp_path)

    def work(rank: int) -> dict[str, Tensor]:
        aliquot.load_dcp(model := aliquot.shard(nn.Linear(12, 7)), tmp_path)
        return aliquot.full_state_dict(model, all_ranks=True)

    run_ranks(WORLD_SIZE, save_sharded, transport=PROCESS_GROUP)
    for found in run_ranks(3, work):
        assert_same_bits(found, whole)


@pytest.mark.parametrize("layout", [Tensor.contiguous, Tensor.t, lambda value: value[:, ::2]])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.uint16, torch.float8_e4m3fn, torch.bool])
def test_tensors_of_any_layout_and_dtype_are_read(
    layout: Callable[[Tensor], Tensor], dtype: torch.dtype, tmp_path: Path
) -> None:
    from aliquot.interchange import dcp_reading

    value = layout(torch.arange(24).view(4, 6).to(dtype))
    dcp.save({"a": value, "scalar": value[0, 0].clone(), "none": value[:0]}, checkpoint_id=tmp_path, no_dist=True)
    found = dcp_reading.read(tmp_path)
    assert torch.equal(bits(found["a"]), bits(value))
    assert torch.equal(bits(found["scalar"]), bits(value[0, 0]))
    assert found["none"].shape == value[:0].shape
