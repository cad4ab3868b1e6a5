"""CMake projects outside the wheel that find the library in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def output_of(*command: str | Path) -> str:
    """What a command that succeeds prints."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command} left with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout.strip()


def cmake_package() -> Path:
    """Where the installed wheel has its CMake package."""
    return Path(output_of(sys.executable, "-m", "aliquot", "--cmake-dir"))


def build(project: Path, folder: Path) -> None:
    """Builds a project against the installed wheel, in `folder`."""
    cmake = (sys.executable, "-m", "cmake")
    output_of(*cmake, "-S", project, "-B", folder, f"-Daliquot_DIR={cmake_package()}", "-DCMAKE_BUILD_TYPE=Release")
    output_of(*cmake, "--build", folder)
