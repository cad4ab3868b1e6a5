"""Modules kept in fp32 inside a 16-bit model, and what is cast on the way into modules."""

from __future__ import annotations

from typing import Any

import aliquot
import pytest
import torch
from cases import images, square_loss
from models import WIDTH, Chain, ConvNet
from ranks import TRANSPORTS, Transport, run_ranks
from torch import Tensor, nn
from training import ADAMW, STAGES, Case, Turn, assert_same_bits, built

STEPS = 6
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
CHAIN = Case(Chain, square_loss)
CONVOLUTIONS = Case(ConvNet, images)


def keeping(params: Any, *kept: Any) -> aliquot.Precision:
    return aliquot.Precision(params, keep_fp32=kept)


def dtypes(model: nn.Module) -> dict[str, torch.dtype]:
    with aliquot.gathered(model):
        tensors = [*model.named_parameters(), *model.named_buffers()]
        return {name: tensor.dtype for name, tensor in tensors}


def train(rank: int, stage: int, params: str) -> dict[str, Tensor]:
    both = (torch.float32, DTYPES[params])
    model: Any = aliquot.shard(built(CHAIN), stage=stage, precision=keeping(params, nn.LayerNorm))
    assert all(dtype == both["norm" not in name] for name, dtype in dtypes(model).items())
    optimizer = aliquot.AdamW(model, **ADAMW, max_grad_norm=1.0)
    inputs, outputs = [], []
    norm = model.blocks[1].norm
    norm.register_forward_pre_hook(lambda _, args: inputs.append(args[0].dtype))
    norm.register_forward_hook(lambda _, args, output: outputs.append(output.dtype))
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        losses.append(CHAIN.run(model, Turn(rank, step)))
        losses[-1].backward()
        optimizer.step()
    assert (set(inputs), set(outputs)) == ({torch.float32}, {DTYPES[params]})
    return aliquot.full_state_dict(model, all_ranks=True) | {"losses": torch.stack(losses).detach()}


def train_every_stage(rank: int, params: str) -> list[dict[str, Tensor]]:
    return [train(rank, stage, params) for stage in STAGES]


@pytest.mark.parametrize("params", DTYPES)
def test_the_stages_and_transports_agree_to_the_bit(params: str) -> None:
    jobs = [run_ranks(2, train_every_stage, params, transport=transport) for transport in TRANSPORTS]
    for rank in range(2):
        first, *others = (outcome for job in jobs for outcome in job[rank])
        for outcome in others:
            assert_same_bits(outcome, first)


class InFloat(nn.LayerNorm):
    """What `keep_fp32` promises, written out."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


def by_hand(rank: int, params: str) -> None:
    """One forward and backward, next to a model that casts by hand: the same bits."""
    model: Any = aliquot.shard(built(CHAIN), stage=1, precision=keeping(params, nn.LayerNorm))
    reference: Any = built(CHAIN).to(DTYPES[params])
    for block, original in zip(reference.blocks, built(CHAIN).blocks, strict=True):  # type: ignore[attr-defined]
        block.norm = InFloat(WIDTH)
        block.norm.load_state_dict(original.norm.state_dict())
    x = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(rank))
    loss, expected = model(x).float().square().mean(), reference(x.to(DTYPES[params])).float().square().mean()
    assert torch.equal(loss, expected)
    loss.backward()
    expected.backward()
    for (name, mine), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad.float()), name


@pytest.mark.parametrize("params", DTYPES)
def test_equals_casts_by_hand(params: str) -> None:
    run_ranks(1, by_hand, params)


def batch_norm(rank: int, stage: int, given: bool) -> None:
    """Of a model that came in bf16, and of one that is cast: statistics are fp32, and move."""
    model: Any = built(CONVOLUTIONS)
    if given:
        model.bfloat16()
    model = aliquot.shard(model, stage=stage, precision=keeping(None if given else "bf16", nn.BatchNorm2d))
    norm = model.features[1]
    before = norm.running_mean.clone()
    optimizer = aliquot.AdamW(model, **ADAMW)
    x = Turn(rank, 0).normal(4, 1, 8, 8)
    for _ in range(3):
        optimizer.zero_grad()
        model(x.bfloat16()).float().square().mean().backward()
        optimizer.step()
    found = dtypes(model)
    assert {found[f"features.1.{name}"] for name in ("weight", "bias", "running_mean")} == {torch.float32}
    assert found["features.0.weight"] == found["head.weight"] == torch.bfloat16
    assert found["features.1.num_batches_tracked"] == torch.int64
    assert not torch.equal(norm.running_mean, before)
    assert not torch.equal(norm.running_mean, norm.running_mean.bfloat16().float())


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("stage", [1, 3])
def test_buffers_of_kept_modules_are_fp32(stage: int, given: bool) -> None:
    run_ranks(2, batch_norm, stage, given)


def bytes_of(rank: int) -> None:
    """A kept module takes 4 bytes for a parameter, and no master."""
    model = aliquot.shard(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)), precision="bf16")
    before = aliquot.stats(model).bytes
    net = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    after = aliquot.stats(aliquot.shard(net, precision=keeping("bf16", net[1]))).bytes
    elements = 64 * 64 + 64
    assert after["param"] - before["param"] == 2 * elements
    assert before["master"] - after["master"] == 2 * elements


def test_bytes_of_kept_modules() -> None:
    run_ranks(1, bytes_of)


class Promotes(Chain):
    """A buffer of fp32 makes the inputs of blocks fp32."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("positions", torch.ones(WIDTH))

    def forward(self, x: Tensor, order: Any = None) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x + self.positions)
        return self.last(x.to(self.last.bias.dtype))


def inputs(rank: int) -> None:
    x = torch.randn(4, WIDTH)
    model = aliquot.shard(Promotes(), precision="bf16")
    assert model(x).dtype == torch.bfloat16
    model(x).float().sum().backward()
    model = aliquot.shard(Promotes(), precision=aliquot.Precision("bf16", casts_inputs=False))
    with pytest.raises(RuntimeError, match="dtype"):
        model(x)
    with pytest.raises(RuntimeError, match="dtype"):
        model(x.bfloat16())  # the blocks are given fp32
    plain = aliquot.shard(Chain(), precision=aliquot.Precision("bf16", casts_inputs=False))
    assert plain(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
def test_inputs_are_cast_at_the_root_and_at_units(transport: Transport) -> None:
    run_ranks(2, inputs, transport=transport)


def refused(rank: int) -> None:
    with pytest.raises(aliquot.InvalidArgument, match="keep_fp32"):
        aliquot.shard(Chain(), precision=keeping("bf16", nn.BatchNorm2d))
    with pytest.raises(aliquot.InvalidArgument, match="keep_fp32"):
        aliquot.shard(Chain(), precision=keeping("bf16", nn.LayerNorm, nn.Linear(2, 2)))
    with pytest.raises(aliquot.InvalidArgument, match="keep_fp32"):
        aliquot.Precision("bf16", keep_fp32=nn.LayerNorm)  # type: ignore[arg-type]
    aliquot.shard(Chain(), precision=keeping("bf16", nn.BatchNorm2d, nn.LayerNorm))


def test_what_is_not_there_is_refused() -> None:
    run_ranks(1, refused)


def outputs(rank: int) -> None:
    """They are cast behind the forward, and gradients go back through the cast; without a word they stay."""
    x = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(rank))
    plain: Any = aliquot.shard(built(CHAIN), precision=aliquot.Precision("bf16"))
    cast: Any = aliquot.shard(built(CHAIN), precision=aliquot.Precision("bf16", output="fp32"))
    assert (plain(x).dtype, cast(x).dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(plain(x).float(), cast(x))
    optimizers = [aliquot.AdamW(model, **ADAMW) for model in (plain, cast)]
    plain(x).float().square().mean().backward()
    cast(x).square().mean().backward()
    for optimizer in optimizers:
        optimizer.step()
    assert_same_bits(aliquot.full_state_dict(plain), aliquot.full_state_dict(cast))


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
def test_outputs_of_the_model_are_cast(transport: Transport) -> None:
    run_ranks(2, outputs, transport=transport)


@pytest.mark.parametrize(
    ("fields", "remedy"),
    [
        ({"compute": "bf16"}, r'Precision\(param="bf16", master="fp32"\)'),
        ({"param": "bf16", "compute": "fp32"}, "keep_fp32="),
        ({"param": "fp32", "compute": "bf16"}, "torch.autocast"),
        ({"param": "bf16", "reduce": "bf16"}, "leave it out"),
        ({"param": "bf16", "reduce": "half"}, "one of"),
        ({"param": "bf16", "output": "float32"}, "one of"),
    ],
)
def test_what_the_core_does_not_do_is_refused_with_what_to_choose(fields: dict[str, Any], remedy: str) -> None:
    with pytest.raises(aliquot.InvalidArgument, match=remedy):
        aliquot.Precision(**fields)


def test_what_it_does_may_be_said() -> None:
    said = aliquot.Precision(param="bf16", compute="bf16", reduce="fp32", master="fp32")
    assert said.keeps_fp32_masters([torch.bfloat16])


class Mixed(nn.Module):
    """Came in three dtypes in one unit: 16-bit matrices, a norm that computes in fp32, a frozen table in fp16."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 3).bfloat16(), nn.Linear(3, WIDTH).bfloat16()
        self.table = nn.Parameter(torch.randn(WIDTH).half(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(torch.tanh(self.up(self.norm(x).bfloat16())))
        return x + y.float() * self.table.float()


MIXED = Case(lambda: Chain(block=Mixed), square_loss)


def mixed(rank: int, stage: int) -> dict[str, Tensor]:
    model: Any = aliquot.shard(built(MIXED), stage=stage)
    before = aliquot.full_state_dict(model, all_ranks=True)
    assert {name: value.dtype for name, value in before.items()} == {
        name: value.dtype for name, value in built(MIXED).state_dict().items()
    }
    optimizer = aliquot.AdamW(model, **ADAMW, max_grad_norm=1.0)
    for step in range(STEPS):
        optimizer.zero_grad()
        square_loss(model, Turn(rank, step)).backward()
        if step == 0 and stage < 2:
            assert_gradients_of_torch(model)
        optimizer.step()
    after = aliquot.full_state_dict(model, all_ranks=True)
    assert [name for name in after if torch.equal(before[name], after[name])] == [
        name for name in after if "table" in name
    ]
    return after


def assert_gradients_of_torch(model: nn.Module) -> None:
    replicas = [built(MIXED) for _ in range(2)]
    for rank, replica in enumerate(replicas):
        square_loss(replica, Turn(rank, 0)).backward()
    for (name, param), *others in zip(model.named_parameters(), *(r.parameters() for r in replicas), strict=True):
        gradients = [other.grad.float() for other in others if other.grad is not None]
        assert param.grad is None if not gradients else torch.equal(param.grad, (gradients[0] + gradients[1]) / 2), name


def test_mixed_dtypes_in_one_unit() -> None:
    """`master="fp32"`, which a model with fp16 in it takes by itself."""
    jobs = [run_ranks(2, mixed, stage, transport=transport) for stage in (0, 1, 3) for transport in TRANSPORTS]
    for weights in (weights for job in jobs for weights in job):
        assert_same_bits(weights, jobs[0][0])
