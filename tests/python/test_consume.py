"""A CMake project without Python finds the library in the installed wheel, compiles against it and runs."""

from __future__ import annotations

import sys
from pathlib import Path

import aliquot
from projects import build, cmake_package, output_of

PROJECT = Path(__file__).parent.parent / "consume"


def test_a_cmake_project_finds_the_installed_wheel(tmp_path: Path) -> None:
    assert (cmake_package() / "aliquotConfig.cmake").is_file()
    build(PROJECT, tmp_path)

    # 33 elements take three cache lines of 16, 7 take one: four lines, two for each rank; the bias starts behind three.
    assert output_of(tmp_path / "consume") == f"{aliquot.__version__} 32 48"


def test_the_command_line_tells_the_version() -> None:
    assert output_of(sys.executable, "-m", "aliquot", "--version") == aliquot.__version__
