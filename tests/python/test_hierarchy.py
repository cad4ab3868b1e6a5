"""Full sharding over several hosts: shared memory inside, a process group between. Ranks of this host play several."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from typing import Any

import aliquot
import pytest
import torch
from cases import CASES
from losing import lose
from ranks import HIERARCHICAL, SHARED_MEMORY, Transport, run_ranks
from refusals import error_of
from test_different_paths import disagreement
from torch import Tensor
from training import STAGES, Sharded, assert_same_bits, assert_same_weights, train_both

WORLD_SIZE = 4
STEPS = 5


def train_every_stage(rank: int, name: str) -> list[dict[str, Tensor]]:
    outcomes = []
    for stage in STAGES:
        sharded = Sharded(CASES[name], stage)
        losses = [sharded.step(rank, step) for step in range(STEPS)]
        outcomes.append(sharded.weights() | {"losses": torch.stack(losses)})
    return outcomes


def without_losses(outcome: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in outcome.items() if name != "losses"}


@pytest.mark.parametrize("name", ["tied_weights", "accumulate"])
def test_stages_and_runs_agree_to_the_bit_and_nearly_with_one_host(name: str) -> None:
    jobs = [run_ranks(WORLD_SIZE, train_every_stage, name, transport=t) for t in (HIERARCHICAL, HIERARCHICAL)]
    for of_ranks in zip(*jobs, strict=True):
        first, *others = (outcome for of_rank in of_ranks for outcome in of_rank)
        for outcome in others:
            assert_same_bits(outcome, first)
    flat = run_ranks(WORLD_SIZE, train_every_stage, name, transport=SHARED_MEMORY)[0][0]
    assert_same_weights(without_losses(jobs[0][0][0]), without_losses(flat))


@pytest.mark.parametrize(("world_size", "hosts"), [(4, 2), (6, 3)])
def test_like_unsharded(world_size: int, hosts: int) -> None:
    run_ranks(world_size, train_both, CASES["odd_sizes"], 3, world_size, STEPS, transport=on(hosts))


def on(hosts: int) -> Transport:
    return replace(HIERARCHICAL, hosts=hosts)


def chosen(rank: int, hosts: str) -> tuple[str, str, str]:
    """The transports of the world, of a model, and of one with a replica on each host."""
    os.environ["ALIQUOT_HOST_ID"] = hosts[rank]
    world = aliquot.init()
    replicated = aliquot.shard(torch.nn.Linear(2, 2), replicas="hosts" if hosts != "aab" else 3)
    state: Any = replicated.__dict__["_aliquot"]
    return world.transport, world.communicator.name, state.shards.name


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        ("aabb", ("hierarchical", "hierarchical", "shared_memory")),
        ("aa", ("shared_memory", "shared_memory", "shared_memory")),
        ("ab", ("process_group", "process_group", "thread")),
        ("aab", ("process_group", "process_group", "thread")),
    ],
)
def test_auto_looks_at_the_hosts(hosts: str, expected: tuple[str, str, str]) -> None:
    assert run_ranks(len(hosts), chosen, hosts, transport=None) == [expected] * len(hosts)


def ask_for_it(rank: int, hosts: str) -> str:
    os.environ["ALIQUOT_HOST_ID"] = hosts[rank]
    return str(error_of(lambda: aliquot.init("hierarchical")))


@pytest.mark.parametrize("hosts", ["aab", "abab"])
def test_hosts_that_are_no_hierarchy_are_refused(hosts: str) -> None:
    for text in run_ranks(len(hosts), ask_for_it, hosts, transport=None):
        assert (
            f"needs as many ranks on each host, neighbours in the order of ranks, and they are on {list(hosts)}" in text
        )


def chosen_of_gpus(rank: int, hosts: str, mapped: str) -> tuple[str, tuple[str, str]]:
    """Where each rank says that it has a GPU, and those of the ranks in `mapped` map each other's memory."""
    from aliquot import _core, gpu, rendezvous, subsets, world

    os.environ["ALIQUOT_HOST_ID"] = hosts[rank]
    gpu.usable = lambda index: True
    _core.can_map_peers = lambda beside, index: mapped[rank] == "y"
    met = rendezvous.meet(20.0)
    names = subsets.hosts_of_ranks(met)
    transport = world._choose(met, names)
    return transport, world._parts(transport, met, names)


@pytest.mark.parametrize(
    ("hosts", "mapped", "expected"),
    [
        ("aa", "yy", ("peer", ("peer", "peer"))),
        ("aa", "yn", ("nccl", ("nccl", "nccl"))),
        ("aabb", "yyyy", ("hierarchical", ("peer", "nccl"))),
        ("aabb", "yyyn", ("hierarchical", ("nccl", "nccl"))),
        ("ab", "yy", ("nccl", ("nccl", "nccl"))),
        ("aab", "yyy", ("nccl", ("nccl", "nccl"))),
    ],
)
def test_gpus_of_several_hosts_are_joined(hosts: str, mapped: str, expected: tuple[str, tuple[str, str]]) -> None:
    assert run_ranks(len(hosts), chosen_of_gpus, hosts, mapped, transport=None) == [expected] * len(hosts)


def ask_for_peers(rank: int) -> str:
    os.environ["ALIQUOT_HOST_ID"] = str(rank)
    return str(error_of(lambda: aliquot.init("peer")))


def test_peers_are_of_one_host() -> None:
    for text in run_ranks(2, ask_for_peers, transport=None):
        assert "joins GPUs of one host, and the ranks are on ['0', '1']; hierarchical is peer inside" in text


def test_ranks_that_skip_units_are_told() -> None:
    texts = run_ranks(WORLD_SIZE, disagreement, "skip_on_one_rank", 3, transport=HIERARCHICAL, timeout=20.0)
    for text in texts:
        assert {"rank 0", "blocks.1", "blocks.2"} <= set(re.findall(r"rank \d|blocks\.\d", text)), text


@pytest.mark.parametrize("victim", [0, 3])
@pytest.mark.parametrize("replicas", [1, 2])
def test_all_hosts_hear_of_a_killed_rank(replicas: int, victim: int) -> None:
    lose(victim, WORLD_SIZE, 3, replicas, 0.05, HIERARCHICAL)
