"""What `import aliquot` costs and touches. Each test asks a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys

import pytest
from aliquot import _core

SECONDS = 0.15


def run(code: str, *arguments: str) -> str:
    return subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True).stdout


def test_extension_links_no_libtorch() -> None:
    """All its symbols are resolved at once, and no file of torch is mapped by it."""
    maps = run(
        f"import ctypes, os; ctypes.CDLL({_core.__file__!r}, os.RTLD_NOW); print(open('/proc/self/maps').read())"
    )
    files = {line.split("/")[-1] for line in maps.splitlines() if "/" in line}
    assert any(name.startswith("_core") for name in files)
    assert [name for name in files if "torch" in name or name.startswith(("libc10", "libcuda", "libnccl"))] == []


def test_import_is_quick() -> None:
    """The one timing figure that is promised: the best of several, beyond `import torch`."""
    code = "import torch, time; t = time.perf_counter(); import aliquot; print(time.perf_counter() - t)"
    assert min(float(run(code)) for _ in range(5)) < SECONDS


def test_import_touches_no_device() -> None:
    code = """
import pathlib, torch

def device_files():
    return {str(link.resolve()) for link in pathlib.Path("/proc/self/fd").iterdir()}

def libraries():
    return {line.split()[-1] for line in open("/proc/self/maps") if ".so" in line}

before = libraries()
import aliquot
assert not torch.cuda.is_initialized()
assert not [f for f in device_files() if f.startswith(("/dev/nvidia", "/dev/dri"))]
assert not [f for f in libraries() - before if "cuda" in f or "nccl" in f or "nvidia" in f]
print("no device")
"""
    assert run(code).strip() == "no device"


def test_import_starts_no_process_group() -> None:
    assert run("import torch, aliquot; print(torch.distributed.is_initialized())").strip() == "False"


def test_what_checkpoints_need_is_imported_with_them() -> None:
    code = "import sys, aliquot; print('pydantic' in sys.modules, callable(aliquot.save_checkpoint))"
    assert run(code).split() == ["False", "True"]


@pytest.mark.parametrize(
    ("option", "said"), [("--version", _core.__version__), ("--cmake-dir", "cmake/aliquot"), ("--help", "checkpoint")]
)
def test_what_builds_ask_for_needs_nothing_of_checkpoints(option: str, said: str) -> None:
    code = "import sys; sys.modules['pydantic'] = None; from aliquot.__main__ import main; sys.exit(main(sys.argv[1:]))"
    assert said in run(code, option)
