"""A CMake project without Python finds the library in the installed wheel, compiles against it and runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import aliquot

PROJECT = Path(__file__).parent.parent / "consume"


def output_of(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command} left with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout.strip()


def cmake(*arguments: str | Path) -> str:
    return output_of(sys.executable, "-m", "cmake", *arguments)


def test_a_cmake_project_finds_the_installed_wheel(tmp_path: Path) -> None:
    package = Path(output_of(sys.executable, "-m", "aliquot", "--cmake-dir"))
    assert (package / "aliquotConfig.cmake").is_file()
    cmake("-S", PROJECT, "-B", tmp_path, f"-Daliquot_DIR={package}", "-DCMAKE_BUILD_TYPE=Release")
    cmake("--build", tmp_path)

    # 33 elements take three cache lines of 16, 7 take one: four lines, two for each rank; the bias starts behind three.
    assert output_of(tmp_path / "consume") == f"{aliquot.__version__} 32 48"


def test_the_command_line_tells_the_version() -> None:
    assert output_of(sys.executable, "-m", "aliquot", "--version") == aliquot.__version__
