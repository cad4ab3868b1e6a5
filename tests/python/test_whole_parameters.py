"""Optimizers whose update of an element depends on the whole parameter: LAMB and Muon, over the shards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import aliquot
import pytest
import torch
from aliquot.orthogonal import orthogonalized
from cases import CASES
from ranks import TRANSPORTS, Transport, run_ranks
from torch import Tensor, nn
from training import MAX_NORM, STAGES, Reference, Turn, assert_same_bits, assert_same_weights, built

WORLD_SIZE = 2
STEPS = 5


class WholeLAMB(torch.optim.Optimizer):
    """Algorithm 2 of the paper, in double precision."""

    def __init__(self, params: Any, lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for param in (param for param in group["params"] if param.grad is not None):
                state = self.state[param]
                g, x = param.grad.double(), param.double()
                t = state["t"] = state.get("t", 0) + 1
                m = state["m"] = 0.9 * state.get("m", torch.zeros_like(x)) + 0.1 * g
                v = state["v"] = 0.999 * state.get("v", torch.zeros_like(x)) + 0.001 * g * g
                r = m / (1 - 0.9**t) / ((v / (1 - 0.999**t)).sqrt() + 1e-6) + group["weight_decay"] * x
                ratio = x.norm() / r.norm() if x.norm() > 0 and r.norm() > 0 else 1.0
                param.copy_(x - group["lr"] * ratio * r)


def lamb(model: nn.Module) -> list[torch.optim.Optimizer]:
    return [aliquot.LAMB(model, lr=1e-2, weight_decay=0.1, max_grad_norm=MAX_NORM)]


def whole_lamb(model: nn.Module) -> list[torch.optim.Optimizer]:
    return [WholeLAMB(model.parameters(), lr=1e-2, weight_decay=0.1)]


def matrices_and_rest(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    params = list(model.parameters())
    return [p for p in params if len(p.shape) == 2], [p for p in params if len(p.shape) != 2]


def muon(model: nn.Module, **settings: Any) -> list[torch.optim.Optimizer]:
    matrices, rest = matrices_and_rest(model)
    return [
        aliquot.Muon(model, lr=0.02, params=matrices, **settings),
        aliquot.TorchOptimizer(model, torch.optim.SGD, lr=0.1, params=rest),
    ]


def whole_muon(model: nn.Module, **settings: Any) -> list[torch.optim.Optimizer]:
    matrices, rest = matrices_and_rest(model)
    return [torch.optim.Muon(matrices, lr=0.02, **settings), torch.optim.SGD(rest, lr=0.1)]


def muon_like_adamw(model: nn.Module) -> list[torch.optim.Optimizer]:
    return muon(model, adjust_lr_fn="match_rms_adamw", nesterov=False)


def whole_muon_like_adamw(model: nn.Module) -> list[torch.optim.Optimizer]:
    return whole_muon(model, adjust_lr_fn="match_rms_adamw", nesterov=False)


Make = Callable[[nn.Module], list[torch.optim.Optimizer]]
PAIRS: dict[str, tuple[Make, Make, float | None]] = {
    "LAMB": (lamb, whole_lamb, MAX_NORM),
    "Muon": (muon, whole_muon, None),
    "Muon_like_AdamW": (muon_like_adamw, whole_muon_like_adamw, None),
}


def train(rank: int, case_name: str, stage: int, pair: str) -> dict[str, Tensor]:
    case = CASES[case_name]
    make, make_whole, max_norm = PAIRS[pair]
    model: Any = aliquot.shard(built(case), stage=stage, units=case.units)
    reference = Reference(case, WORLD_SIZE, max_norm)
    optimizers, wholes = make(model), [make_whole(replica) for replica in reference.replicas]
    for step in range(STEPS):
        model.zero_grad()
        optimizers[0].zero_grad()
        case.run(model, Turn(rank, step, no_sync=aliquot.no_sync))
        for optimizer in optimizers:
            optimizer.step()
        for replica in reference.replicas:
            replica.zero_grad()
        reference.backward(step)
        for replica, of_replica in zip(reference.replicas, wholes, strict=True):
            if max_norm is not None:
                torch.nn.utils.clip_grad_norm_(replica.parameters(), max_norm)
            for whole in of_replica:
                whole.step()
    weights = aliquot.full_state_dict(model, all_ranks=True)
    assert_same_weights(weights, reference.weights(), tolerance=2e-3 if "Muon" in pair else 1e-5)
    return weights


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("stage", STAGES)
def test_steps_as_over_whole_parameters(stage: int, pair: str) -> None:
    first, second = run_ranks(WORLD_SIZE, train, "plain", stage, pair)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_lamb_gives_the_same_bits_at_all_stages() -> None:
    of_stages = [run_ranks(WORLD_SIZE, train, "plain", stage, "LAMB")[0] for stage in STAGES]
    for weights in of_stages[1:]:
        assert_same_bits(weights, of_stages[0])


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
@pytest.mark.parametrize("case", ["frozen", "blocks_in_some_steps", "tied_weights"])
@pytest.mark.parametrize("pair", ["LAMB", "Muon"])
def test_where_some_parameters_have_no_gradient(pair: str, case: str, transport: Transport) -> None:
    run_ranks(WORLD_SIZE, train, case, 3, pair, transport=transport)


def owners(rank: int) -> list[int]:
    model = aliquot.shard(nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(8))))
    optimizer = aliquot.Muon(model, params=model.parameters())
    return sorted(optimizer._owners.values())


def test_ranks_share_the_matrices() -> None:
    assert run_ranks(WORLD_SIZE, owners) == [[0] * 4 + [1] * 4] * WORLD_SIZE


def refuse_vectors(rank: int) -> None:
    model = aliquot.shard(nn.Linear(2, 2))
    with pytest.raises(aliquot.InvalidArgument, match="bias is no matrix of real numbers"):
        aliquot.Muon(model, params=model.parameters())
    with pytest.raises(aliquot.InvalidArgument, match="adjust_lr_fn"):
        aliquot.Muon(model, params=[model.weight], adjust_lr_fn="none")  # type: ignore[arg-type]
    with pytest.raises(aliquot.InvalidArgument, match="LAMB: lr"):
        aliquot.LAMB(model, lr=-1.0)


def test_what_they_can_not_do_is_refused() -> None:
    run_ranks(1, refuse_vectors)


def test_orthogonalized_matrices_have_their_vectors_and_singular_values_of_about_one() -> None:
    torch.manual_seed(0)
    matrices = [torch.randn(shape) for shape in [(8, 8), (16, 4), (4, 16), (8, 8), (4, 16)]]
    for matrix, made in zip(matrices, orthogonalized(matrices, (3.4445, -4.7750, 2.0315), 10, 1e-7), strict=True):
        u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
        values = u.T @ made @ vh.T
        assert values.diagonal().min() > 0.5
        assert values.diagonal().max() < 1.5
        assert (values - values.diagonal().diag()).abs().max() < 1e-4
