"""What user code does to parameters between steps: right where they are whole (stages 0 to 2), refused at stage 3."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import aliquot
import pytest
import torch
from cases import CASES
from models import WIDTH
from ranks import PROCESS_GROUP, SHARED_MEMORY, TRANSPORTS, Transport, run_ranks
from refusals import names_a_call, refused
from torch import Tensor, nn
from training import STAGES, Case, Reference, Sharded, assert_same_bits, assert_same_weights, built

CASE = CASES["plain"]
NAME = "blocks.1.up.weight"
WORLD_SIZE = 2


def saved(value: object) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


READS: dict[str, Callable[[nn.Module, nn.Parameter], Any]] = {
    "clone": lambda m, p: p.clone(),
    "detach": lambda m, p: p.detach().clone(),
    "data": lambda m, p: p.data.clone(),
    "index": lambda m, p: p[0].clone(),
    "view": lambda m, p: p.view(-1).clone(),
    "transpose": lambda m, p: p.t().contiguous(),
    "sum": lambda m, p: p.sum().item(),
    "norm": lambda m, p: p.norm().item(),
    "float": lambda m, p: float(p[0, 0]),
    "tolist": lambda m, p: p.tolist(),
    "numpy": lambda m, p: p.detach().numpy().tolist(),
    "add": lambda m, p: torch.zeros(p.shape) + p,
    "matmul": lambda m, p: torch.ones(1, p.shape[0]) @ p,
    "equal": lambda m, p: torch.equal(p, torch.zeros(p.shape)),
    "average": lambda m, p: torch.zeros(p.shape).lerp_(p.detach(), 0.1),
    "copy_from": lambda m, p: torch.empty(p.shape).copy_(p.detach()),
    "stack": lambda m, p: torch.stack([p, p]).detach(),
    "foreach": lambda m, p: torch._foreach_norm([p.detach()])[0],
    "to_float64": lambda m, p: p.detach().to(torch.float64),
    "vector": lambda m, p: nn.utils.parameters_to_vector(m.parameters()).detach(),
    "state_dict": lambda m, p: m.state_dict()[NAME].clone(),
    "save_state_dict": lambda m, p: saved(m.state_dict())[NAME].clone(),
    "functional_call": lambda m, p: nn.functional.linear(torch.ones(1, p.shape[1]), p).detach(),
}


CARRIED_AWAY: dict[str, Callable[[nn.Module, nn.Parameter], Any]] = {
    "deepcopy": lambda m, p: copy.deepcopy(p).detach().clone(),
    "pickle": lambda m, p: pickle.loads(pickle.dumps(p)).detach().clone(),
    "save": lambda m, p: saved(p).detach().clone(),
}


def whole(sharded: Sharded) -> nn.Module:
    """An unsharded model of the same weights."""
    model = built(sharded.case)
    model.load_state_dict(sharded.weights())
    return model


def same(actual: Any, expected: Any) -> bool:
    return torch.equal(actual, expected) if isinstance(expected, Tensor) else bool(actual == expected)


def outcome_of_read(read: Callable[..., Any], model: nn.Module, expected: Any) -> str:
    seen: list[Any] = []
    if refused(lambda: seen.append(read(model, model.get_parameter(NAME)))):
        return "refused"
    return "right" if same(seen[0], expected) else f"wrong: {seen[0]}"


def read_everything(rank: int, stage: int) -> list[dict[str, str]]:
    """Outcomes before the first step, after a step, and while gathered."""
    sharded = Sharded(CASE, stage)
    outcomes = [read_all(sharded)]
    sharded.step(rank, 0)
    sharded.optimizer.zero_grad()
    outcomes.append(read_all(sharded))
    expected = whole(sharded)
    with aliquot.gathered(sharded.model):
        outcomes.append(read_all(sharded, expected))
    return [*outcomes, read_all(sharded)]


def read_all(sharded: Sharded, expected: nn.Module | None = None) -> dict[str, str]:
    expected = expected or whole(sharded)
    return {
        name: outcome_of_read(read, sharded.model, read(expected, expected.get_parameter(NAME)))
        for name, read in READS.items()
    }


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
@pytest.mark.parametrize("stage", STAGES)
def test_reads(stage: int, transport: Transport) -> None:
    for before, after, gathered, again in run_ranks(WORLD_SIZE, read_everything, stage, transport=transport):
        expected = dict.fromkeys(READS, "refused" if stage == 3 else "right")
        assert before == after == again == expected
        assert gathered == dict.fromkeys(READS, "right")


def carry_away(rank: int, stage: int) -> dict[str, str]:
    sharded, expected = Sharded(CASE, stage), built(CASE).get_parameter(NAME)
    return {name: outcome_of_read(read, sharded.model, expected.detach()) for name, read in CARRIED_AWAY.items()}


@pytest.mark.parametrize("stage", STAGES)
def test_copies_of_a_parameter_are_right_or_refused(stage: int) -> None:
    for outcomes in run_ranks(WORLD_SIZE, carry_away, stage):
        assert set(outcomes.values()) <= {"right", "refused"} - ({"right"} if stage == 3 else set()), outcomes


def print_parameters(rank: int, stage: int) -> None:
    """Shows the values, or says what there is and how to see them; repr never raises, for the sake of debuggers."""
    sharded, plain = Sharded(CASE, stage), built(CASE)
    p, expected = sharded.model.get_parameter(NAME), repr(plain.get_parameter(NAME))
    texts = [repr(p), str(p)]
    refused(lambda: texts.append(f"{p}"))
    for text in texts:
        assert text == expected or (names_a_call(text) and NAME in text and str(tuple(p.shape)) in text), text
    with aliquot.gathered(sharded.model):
        assert repr(p) == expected


@pytest.mark.parametrize("stage", STAGES)
def test_prints(stage: int) -> None:
    run_ranks(WORLD_SIZE, print_parameters, stage)


def look_from_outside(rank: int, stage: int) -> None:
    sharded, plain = Sharded(CASE, stage), built(CASE)
    for (name, p), (expected_name, q) in zip(sharded.model.named_parameters(), plain.named_parameters(), strict=True):
        assert (name, p.shape, p.dtype, p.numel()) == (expected_name, q.shape, q.dtype, q.numel())
        assert (p.requires_grad, p.device, p.is_leaf, p.dim()) == (q.requires_grad, q.device, q.is_leaf, q.dim())
        assert isinstance(p, nn.Parameter)
    assert repr(sharded.model) == repr(plain)
    assert sharded.model is sharded.model.requires_grad_()
    refused(lambda: sharded.model.to("cpu").float())
    assert_same_bits(sharded.weights(), plain.state_dict())


@pytest.mark.parametrize("stage", STAGES)
def test_shapes_and_names_are_the_model_s_own(stage: int) -> None:
    run_ranks(WORLD_SIZE, look_from_outside, stage)


def ramp(p: nn.Parameter) -> Tensor:
    return torch.linspace(-0.5, 0.5, p.numel()).sin().view(p.shape)


@torch.no_grad()
def write_under_no_grad(write: Callable[[nn.Parameter], object], p: nn.Parameter) -> None:
    write(p)


def replace(model: nn.Module) -> None:
    model.blocks[1].up.weight = nn.Parameter(ramp(model.get_parameter(NAME)))  # type: ignore[union-attr,index]


def assign_data(p: nn.Parameter) -> None:
    p.data = ramp(p)


def other_state() -> dict[str, Tensor]:
    return {name: 0.5 * value for name, value in built(CASE).state_dict().items()}


IN_PLACE: dict[str, Callable[[nn.Module, nn.Parameter], object]] = {
    "zero_": lambda m, p: write_under_no_grad(lambda p: p.zero_(), p),
    "mul_": lambda m, p: write_under_no_grad(lambda p: p.mul_(0.5), p),
    "copy_": lambda m, p: write_under_no_grad(lambda p: p.copy_(ramp(p)), p),
    "index_assignment": lambda m, p: write_under_no_grad(lambda p: p.__setitem__(0, 1.0), p),
    "data_mul_": lambda m, p: p.data.mul_(0.5),
    "data_index_assignment": lambda m, p: p.data.__setitem__(0, 1.0),
    "detached": lambda m, p: p.detach().fill_(0.25),
    "init": lambda m, p: nn.init.constant_(p, 0.1),
    "foreach": lambda m, p: torch._foreach_mul_([p.data], 0.5),
    "apply": lambda m, p: m.apply(
        lambda layer: layer.reset_parameters() if hasattr(layer, "reset_parameters") else None
    ),
    "load_state_dict": lambda m, p: m.load_state_dict(other_state()),
}
REBINDING: dict[str, Callable[[nn.Module, nn.Parameter], object]] = {
    "assign_data": lambda m, p: assign_data(p),
    "replace": lambda m, p: replace(m),
    "load_by_assignment": lambda m, p: m.load_state_dict(other_state(), assign=True),
    "vector_to_parameters": lambda m, p: nn.utils.vector_to_parameters(
        torch.linspace(-1, 1, sum(q.numel() for q in m.parameters())).sin(), m.parameters()
    ),
    "half": lambda m, p: m.half().float(),
    "to_float64": lambda m, p: m.to(torch.float64).to(torch.float32),
    "to_empty": lambda m, p: m.to_empty(device="cpu").load_state_dict(other_state()),
}


def write_both(rank: int, write: Callable[[nn.Module, nn.Parameter], object], stage: int, must_be_right: bool) -> None:
    sharded, reference = Sharded(CASE, stage), Reference(CASE, WORLD_SIZE)
    sharded.step(rank, 0)
    reference.step(0)
    before, parameters = sharded.weights(), dict(sharded.model.named_parameters())
    if refused(lambda: (seeded(write, sharded.model), sharded.step(rank, 1))):
        assert not must_be_right, "refused"
        put_back(sharded.model, parameters)
        assert_same_bits(sharded.weights(), before)
        return
    for replica in reference.replicas:
        seeded(write, replica)
    reference.step(1)
    assert_same_weights(sharded.weights(), reference.weights())


def put_back(model: nn.Module, parameters: dict[str, nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        module, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(module), attribute, parameter)


def seeded(write: Callable[[nn.Module, nn.Parameter], object], model: nn.Module) -> None:
    torch.manual_seed(7)
    write(model, model.get_parameter(NAME))


@pytest.mark.parametrize("transport", [SHARED_MEMORY, PROCESS_GROUP], ids=str)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("write", IN_PLACE.values(), ids=IN_PLACE)
def test_writes_in_place(write: Any, stage: int, transport: Transport) -> None:
    run_ranks(WORLD_SIZE, write_both, write, stage, stage < 3, transport=transport)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("write", REBINDING.values(), ids=REBINDING)
def test_writes_by_rebinding_are_right_or_refused(write: Any, stage: int) -> None:
    run_ranks(WORLD_SIZE, write_both, write, stage, False)


def refuse_write(rank: int) -> dict[str, bool]:
    sharded = Sharded(CASE, 3)
    return {name: refused(lambda: seeded(write, sharded.model)) for name, write in IN_PLACE.items()}  # noqa: B023


def test_stage_3_refuses_every_write_at_once() -> None:
    for outcomes in run_ranks(WORLD_SIZE, refuse_write):
        assert outcomes == dict.fromkeys(IN_PLACE, True)


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "save": saved,
    "averaged": lambda m: torch.optim.swa_utils.AveragedModel(m).module,
}


def copy_model(rank: int, duplicate: Callable[[nn.Module], nn.Module], stage: int) -> None:
    """The copy works, or there is none; either way the original goes on as if nothing had been."""
    sharded, reference = Sharded(CASE, stage), Reference(CASE, WORLD_SIZE)
    sharded.step(rank, 0)
    reference.step(0)
    expected, x = whole(sharded), torch.ones(1, WIDTH)
    sharded.optimizer.zero_grad()
    refused(lambda: torch.testing.assert_close(duplicate(sharded.model)(x), expected(x)))
    sharded.step(rank, 1)
    reference.step(1)
    assert_same_weights(sharded.weights(), reference.weights())


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
def test_copies_of_the_model_are_right_or_refused(duplicate: Any, stage: int) -> None:
    run_ranks(WORLD_SIZE, copy_model, duplicate, stage)


def regularize_at_stage_3(rank: int) -> bool:
    case = Case(CASE.build, CASES["regularize"].run)
    sharded, spared = Sharded(case, 3), Sharded(CASE, 3)
    if not refused(lambda: sharded.step(rank, 0)):
        return False
    aliquot.reset_step(sharded.model)
    sharded.case = CASE
    for s in (sharded, spared):
        s.step(rank, 1)
    assert_same_bits(sharded.weights(), spared.weights())
    return True


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
def test_stage_3_refuses_a_regularizer_outside_the_model(transport: Transport) -> None:
    assert run_ranks(WORLD_SIZE, regularize_at_stage_3, transport=transport) == [True, True]
