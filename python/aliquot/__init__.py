"""Aliquot trains PyTorch models whose parameters, gradients and optimizer states are partitioned over the ranks."""

from __future__ import annotations

from aliquot._core import (
    CheckpointError,
    CommunicatorError,
    DeviceError,
    Error,
    InvalidArgument,
    OutOfMemory,
    PeerLost,
    __version__,
)
from aliquot.control import no_sync, reset_step
from aliquot.graph import graph
from aliquot.lamb import LAMB
from aliquot.muon import Muon
from aliquot.optim import AdamW, clip_grad_norm_
from aliquot.precision import Precision
from aliquot.profile import Profile, Times, profile
from aliquot.scaler import GradScaler
from aliquot.shard import shard
from aliquot.stats import Stats, stats
from aliquot.stopping import request_stop, should_stop
from aliquot.torch_optimizer import TorchOptimizer
from aliquot.values import full_state_dict, gathered, load_full_state_dict
from aliquot.world import World, init

__all__ = [
    "LAMB",
    "AdamW",
    "CheckpointError",
    "CommunicatorError",
    "DeviceError",
    "Error",
    "GradScaler",
    "InvalidArgument",
    "Muon",
    "OutOfMemory",
    "PeerLost",
    "Precision",
    "Profile",
    "Stats",
    "Times",
    "TorchOptimizer",
    "World",
    "__version__",
    "clip_grad_norm_",
    "full_state_dict",
    "gathered",
    "graph",
    "init",
    "load_full_state_dict",
    "no_sync",
    "profile",
    "request_stop",
    "reset_step",
    "shard",
    "should_stop",
    "stats",
]
