"""The arrow check finds each kind of broken rule, at its line, and is content with what the rules allow."""

from __future__ import annotations

from pathlib import Path

import pytest
from check_arrows import violations


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("cpp/include/aliquot/a.h", "#pragma once\n#include <cuda_runtime.h>\n", "a.h:2: cpp/ never includes CUDA"),
        ("cpp/include/aliquot/a.h", "#include <torch/torch.h>\n", "a.h:1: cpp/ knows no torch"),
        ("cpp/src/a.cpp", '  #  include "cuda/scale.h"\n', "a.cpp:1: cpp/ never includes CUDA"),
        ("cpp/src/cpu/a.cpp", "#include <pybind11/pybind11.h>\n", "a.cpp:1: cpp/ knows no Python"),
        ("cpp/src/a.cpp", "#include <sstream>\n", "a.cpp:1: cpp/ uses no iostreams"),
        ("cuda/a.cu", "#include <ATen/ATen.h>\n", "a.cu:1: cuda/ knows no torch"),
        ("python/src/a.cpp", 'py::module_::import("torch.utils");\n', "a.cpp:1: python/src knows no torch"),
        ("tools/a.py", "def f():\n    import torch.nn\n", "a.py:2: torch is imported only in python/aliquot"),
        ("python/aliquot/a.py", "import torch.autograd\n", "a.py:1: autograd is touched only in"),
        ("python/aliquot/a.py", "from torch import autograd\n", "a.py:1: autograd is touched only in"),
        ("python/aliquot/a.py", "from torch.autograd.graph import Node\n", "a.py:1: autograd is touched only in"),
        ("python/aliquot/a.py", "import torch\nF = torch.autograd.Function\n", "a.py:2: autograd is touched only in"),
    ],
)
def test_a_broken_rule_is_found(tmp_path: Path, path: str, text: str, expected: str) -> None:
    write(tmp_path, path, text)
    found = violations(tmp_path)
    assert len(found) == 1
    assert expected in found[0]


def test_nccl_is_named_in_one_source_file(tmp_path: Path) -> None:
    write(tmp_path, "cuda/nccl_communicator.cpp", 'dlsym(library, "ncclAllGather");\n')
    assert violations(tmp_path) == []
    write(tmp_path, "cuda/stream.cpp", "ncclComm_t comm;\n")
    assert violations(tmp_path) == [
        "cuda/stream.cpp: NCCL is named in one source file, not in 2: cuda/nccl_communicator.cpp, cuda/stream.cpp"
    ]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("cpp/src/a.cpp", '// "cuda/" adds to this library\n#include "aliquot/device.h"\n'),
        ("cuda/a.cpp", '#include <cuda_runtime_api.h>\n#include "cuda/launch.h"\n'),
        ("python/src/a.cpp", "// reaches torch by DLPack\n#include <pybind11/pybind11.h>\n"),
        ("python/aliquot/a.py", "import torch\nfrom torch import nn\nfrom .hooks import install\n"),
        ("python/aliquot/hooks.py", "import torch\nF = torch.autograd.Function\n"),
        ("tests/python/a.py", "import torch.autograd\n"),
    ],
)
def test_what_the_rules_allow_passes(tmp_path: Path, path: str, text: str) -> None:
    write(tmp_path, path, text)
    assert violations(tmp_path) == []
