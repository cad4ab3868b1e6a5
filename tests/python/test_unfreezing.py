"""Parameters that were frozen at `aliquot.shard` and train later: gradients, masters and states come then."""

from __future__ import annotations

from functools import partial
from typing import Any

import aliquot
import pytest
import torch
from cases import square_loss
from models import WIDTH, Block, Chain
from ranks import PROCESS_GROUP, SHARED_MEMORY, SHARED_MEMORY_POISONED, TRANSPORTS, Transport, run_ranks
from torch import Tensor, nn
from training import STAGES, Case, Reference, Turn, assert_same_bits, assert_same_weights, average_gradients, built

WORLD_SIZE = 2
STEPS = 6
LR = 1e-2
WAYS = [(0, SHARED_MEMORY), (1, SHARED_MEMORY), (2, PROCESS_GROUP), (3, SHARED_MEMORY_POISONED), (3, PROCESS_GROUP)]


def head_only() -> Chain:
    """One block is frozen in part, as with adapters; two as a whole."""
    model = Chain()
    for name, param in model.named_parameters():
        param.requires_grad_(name.startswith(("last", "blocks.2.up")))
    return model


FROZEN = Case(head_only, square_loss)
FREE = Case(Chain, square_loss)


def unfreeze(model: Any, step: int) -> list[nn.Parameter]:
    """From the end to the beginning, as people do."""
    module = {2: model.blocks[2], 3: model.blocks[0].down, 4: model}.get(step)
    return [] if module is None else list(module.requires_grad_(True).parameters())


def added(model: Any, optimizer: torch.optim.Optimizer, step: int) -> None:
    """What was unfrozen comes in a group of its own, with a learning rate of its own."""
    held = {param for group in optimizer.param_groups for param in group["params"]}
    if new := [param for param in unfreeze(model, step) if param not in held]:
        optimizer.add_param_group({"params": new, "lr": LR / step})


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [param for param in model.parameters() if param.requires_grad]


MAKE: dict[str, tuple[Any, Any]] = {
    "AdamW": (aliquot.AdamW, torch.optim.AdamW),
    "SGD": (partial(aliquot.SGD, momentum=0.9), partial(torch.optim.SGD, momentum=0.9)),
    "TorchOptimizer": (partial(aliquot.TorchOptimizer, optimizer=torch.optim.Adagrad), torch.optim.Adagrad),
}


def train_on(rank: int, stage: int, kind: str, later: bool, replicas: int = 1) -> None:
    """`later`: the optimizer is given what is unfrozen then; else it has had it all along, without gradients."""
    make, make_whole = MAKE[kind]
    model: Any = aliquot.shard(built(FROZEN), stage=stage, replicas=replicas)
    reference = Reference(FROZEN, WORLD_SIZE * replicas)
    optimizer = make(model, params=trained(model) if later else None, lr=LR)
    wholes = [make_whole(trained(m) if later else m.parameters(), lr=LR) for m in reference.replicas]
    for step in range(STEPS):
        for one, its in zip([model, *reference.replicas], [optimizer, *wholes], strict=True):
            added(one, its, step) if later else unfreeze(one, step)
        optimizer.zero_grad()
        square_loss(model, Turn(rank, step)).backward()
        optimizer.step()
        for number, replica in enumerate(reference.replicas):
            replica.zero_grad()
            square_loss(replica, Turn(number, step)).backward()
        average_gradients(reference.replicas)
        for whole in wholes:
            whole.step()
    assert_same_weights(aliquot.full_state_dict(model, all_ranks=True), reference.weights())


@pytest.mark.parametrize("later", [True, False])
@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize(("stage", "transport"), WAYS, ids=str)
def test_trains_like_unsharded(stage: int, transport: Transport, kind: str, later: bool) -> None:
    run_ranks(WORLD_SIZE, train_on, stage, kind, later, transport=transport)


def test_in_replicas() -> None:
    run_ranks(2 * WORLD_SIZE, train_on, 3, "AdamW", True, 2)


def with_moments_of_8_bits(rank: int) -> None:
    model: Any = aliquot.shard(built(FROZEN))
    optimizer = aliquot.AdamW(model, lr=LR, moment_bits=8)
    for step in range(STEPS):
        unfreeze(model, step)
        before = aliquot.full_state_dict(model, all_ranks=True)
        optimizer.zero_grad()
        square_loss(model, Turn(rank, step)).backward()
        optimizer.step()
        after = aliquot.full_state_dict(model, all_ranks=True)
        for name, param in model.named_parameters():
            assert after[name].isfinite().all()
            assert torch.equal(after[name], before[name]) != param.requires_grad, name


def test_moments_of_8_bits_come_too() -> None:
    run_ranks(WORLD_SIZE, with_moments_of_8_bits)


def unfrozen_or_never_frozen(rank: int, stage: int, precision: Any) -> None:
    """Room that comes later is as room that was there from the start: masters and states to the bit."""
    early: Any = aliquot.shard(built(FREE), stage=stage, precision=precision)
    late: Any = aliquot.shard(built(FROZEN), stage=stage, precision=precision)
    for name, param in early.named_parameters():
        param.requires_grad_(name.startswith(("last", "blocks.2.up")))
    aliquot.load_full_state_dict(early, aliquot.full_state_dict(late))  # as the masters of frozen parameters begin
    aliquot.load_full_state_dict(late, aliquot.full_state_dict(late))
    optimizers = [aliquot.AdamW(model, lr=LR) for model in (early, late)]
    for step in range(STEPS):
        for model, optimizer in zip((early, late), optimizers, strict=True):
            unfreeze(model, step)
            optimizer.zero_grad()
            square_loss(model, Turn(rank, step)).float().backward()
            optimizer.step()
    assert_same_bits(aliquot.full_state_dict(late), aliquot.full_state_dict(early))


@pytest.mark.parametrize("precision", [None, "bf16", "fp16", aliquot.Precision("bf16", master="fp32")], ids=str)
@pytest.mark.parametrize("stage", STAGES)
def test_is_as_if_it_had_been_frozen_behind_shard(stage: int, precision: Any) -> None:
    run_ranks(WORLD_SIZE, unfrozen_or_never_frozen, stage, precision)


def bytes_come(rank: int) -> None:
    model: Any = aliquot.shard(built(FROZEN), stage=2)
    optimizer = aliquot.AdamW(model)
    before = aliquot.stats(model).bytes
    model.blocks[0].norm.bias.requires_grad_(True)  # room is made for the whole unit
    after = aliquot.stats(model).bytes
    numel = sum(param.numel() for param in model.blocks[0].parameters())
    for role in ("grad", "exp_avg", "exp_avg_sq"):
        assert 4 * numel / WORLD_SIZE <= after[role] - before[role] <= 4 * numel / WORLD_SIZE + 4 * 16 * 7
    assert after["param"] == before["param"]
    square_loss(model, Turn(rank, 0)).backward()
    assert model.blocks[0].norm.bias.grad is not None
    assert model.blocks[0].norm.weight.grad is None
    optimizer.step()


def test_bytes_come_with_the_first_parameter_of_a_unit() -> None:
    run_ranks(WORLD_SIZE, bytes_come)


def accumulate(rank: int, stage: int) -> None:
    """Gradients that are there already stay, reduced or not."""
    model: Any = aliquot.shard(built(FROZEN), stage=stage)
    reference = Reference(FROZEN, WORLD_SIZE)
    optimizer = aliquot.AdamW(model, lr=LR)
    wholes = [torch.optim.AdamW(replica.parameters(), lr=LR) for replica in reference.replicas]
    square_loss(model, Turn(rank, 0)).backward()
    with aliquot.no_sync(model):
        square_loss(model, Turn(rank, 1)).backward()
    unfreeze(model, 2)
    square_loss(model, Turn(rank, 2)).backward()
    optimizer.step()
    for number, replica in enumerate(reference.replicas):
        for step in range(3):
            if step == 2:
                unfreeze(replica, 2)
            square_loss(replica, Turn(number, step)).backward()
    average_gradients(reference.replicas)
    for whole in wholes:
        whole.step()
    assert_same_weights(aliquot.full_state_dict(model, all_ranks=True), reference.weights())


@pytest.mark.parametrize(("stage", "transport"), WAYS, ids=str)
def test_gradients_that_are_there_stay(stage: int, transport: Transport) -> None:
    run_ranks(WORLD_SIZE, accumulate, stage, transport=transport)


class Adapted(nn.Module):
    """A frozen layer beside a trained one, as with LoRA: its weight is read for the gradient of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.adapter = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.frozen(x) + self.adapter(x))


def adapted() -> Chain:
    model = Chain(block=Adapted)
    model.first.requires_grad_(False)
    return model


def unfreeze_before_adapters(rank: int, order: tuple[int, ...]) -> None:
    """From the second step on, inputs of the blocks need gradients, which they did not before."""
    case = Case(adapted, square_loss)
    model: Any = aliquot.shard(built(case))
    reference = Reference(case, WORLD_SIZE)
    optimizer = aliquot.AdamW(model, lr=LR)
    wholes = [torch.optim.AdamW(replica.parameters(), lr=LR) for replica in reference.replicas]
    for step in range(4):
        for one in (model, *reference.replicas):
            one.first.requires_grad_(step % 2 == 1)
        optimizer.zero_grad()
        square_loss(model, Turn(rank, step), order=order).backward()
        optimizer.step()
        for number, replica in enumerate(reference.replicas):
            replica.zero_grad()
            square_loss(replica, Turn(number, step), order=order).backward()
        average_gradients(reference.replicas)
        for whole in wholes:
            whole.step()
    assert_same_weights(aliquot.full_state_dict(model, all_ranks=True), reference.weights())


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 1, 2, 0)], ids=str)
@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
def test_what_comes_before_adapters(transport: Transport, order: tuple[int, ...]) -> None:
    run_ranks(WORLD_SIZE, unfreeze_before_adapters, order, transport=transport)


def differ(rank: int) -> None:
    model: Any = aliquot.shard(built(FROZEN))
    with pytest.raises(aliquot.CommunicatorError, match=r"unfreeze.*blocks\.[01]") as raised:
        model.blocks[rank].requires_grad_(True)
    assert all(f"blocks.{i}" in str(raised.value) for i in range(WORLD_SIZE))


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
def test_ranks_that_differ_are_told_what_each_unfroze(transport: Transport) -> None:
    run_ranks(WORLD_SIZE, differ, transport=transport)


class UnfreezesItself(Chain):
    def forward(self, x: Tensor, order: Any = None) -> Tensor:
        self.blocks[0].requires_grad_(True)
        return super().forward(x, order)


def too_late(rank: int) -> None:
    frozen = UnfreezesItself()
    frozen.blocks[0].requires_grad_(False)
    model: Any = aliquot.shard(frozen)
    with pytest.raises(aliquot.Error, match="within a forward or backward: do it between steps"):
        square_loss(model, Turn(rank, 0))


def unseen(rank: int) -> None:
    """Within aliquot.gathered parameters are ordinary tensors, which nobody watches."""
    model: Any = aliquot.shard(built(FROZEN))
    with aliquot.gathered(model):
        model.blocks[0].requires_grad_(True)
    with pytest.raises(aliquot.Error, match=r"blocks\.0.*got a gradient.*between steps and not within"):
        square_loss(model, Turn(rank, 0)).backward()


def test_within_a_forward_it_is_refused() -> None:
    run_ranks(WORLD_SIZE, too_late)


def integers(rank: int) -> None:
    block = Block()
    block.codes = nn.Parameter(torch.zeros(4, dtype=torch.uint8), requires_grad=False)
    block.tiny = nn.Parameter(torch.zeros(4, dtype=torch.float8_e4m3fn), requires_grad=False)
    model: Any = aliquot.shard(block)
    with pytest.raises(RuntimeError):
        model.codes.requires_grad_(True)
    with pytest.raises(aliquot.Error, match="stays frozen"):
        model.tiny.requires_grad_(True)


def test_what_is_kept_bit_by_bit_stays_frozen() -> None:
    run_ranks(1, integers)
