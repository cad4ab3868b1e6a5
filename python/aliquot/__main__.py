"""`python -m aliquot`: what a build system asks of the installed package."""

from __future__ import annotations

import argparse
from pathlib import Path

from aliquot._core import __version__


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m aliquot", description="Tells where the parts of Aliquot lie.")
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument(
        "--cmake-dir", action="store_true", required=True, help="print the folder to give CMake as aliquot_DIR"
    )
    parser.parse_args()
    print(Path(__file__).parent / "lib" / "cmake" / "aliquot")


if __name__ == "__main__":
    main()
