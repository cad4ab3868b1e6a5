"""Holds the arrows between the rooms (docs/design.md, section 3): who may include, import or name what.

`python tools/check_arrows.py [ROOT]` prints each place that breaks a rule and leaves with 1 if there is one.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NATIVE = {".h", ".cpp", ".cu", ".cuh"}
NCCL_NAME = re.compile(r"\bnccl[A-Z]\w*|\blibnccl\b|[<\"]nccl\.h[>\"]")


@dataclass(frozen=True)
class NativeRule:
    """No line of the native sources under `folder` may match `forbidden`."""

    folder: str
    forbidden: re.Pattern[str]
    message: str


def including(*starts: str) -> re.Pattern[str]:
    """Matches an #include of a path that begins with one of `starts`."""
    return re.compile(rf"^\s*#\s*include\s*[<\"](?:{'|'.join(starts)})")


RULES = (
    NativeRule("cpp", including("cuda", "nvml", "cublas"), "cpp/ never includes CUDA"),
    NativeRule("cpp", including("torch/", "ATen/", "c10/"), "cpp/ knows no torch"),
    NativeRule("cpp", including("pybind11/", "Python.h"), "cpp/ knows no Python"),
    NativeRule(
        "cpp", including("iostream", "fstream", "sstream"), "cpp/ uses no iostreams (docs/design.md, section 4)"
    ),
    NativeRule("cuda", including("torch/", "ATen/", "c10/"), "cuda/ knows no torch"),
    NativeRule("python/src", including("torch/", "ATen/", "c10/"), "python/src knows no torch"),
    NativeRule("python/src", re.compile(r"import\(\s*\"torch"), "python/src knows no torch"),
)


def native_files(root: Path, folder: str) -> list[Path]:
    return sorted(path for path in (root / folder).rglob("*") if path.suffix in NATIVE)


def native_violations(root: Path) -> Iterator[str]:
    for rule in RULES:
        for path in native_files(root, rule.folder):
            for number, line in enumerate(path.read_text().splitlines(), 1):
                if rule.forbidden.search(line):
                    yield f"{path.relative_to(root)}:{number}: {rule.message}"


def nccl_violations(root: Path) -> Iterator[str]:
    """NCCL is named in one source file, so that one file is all there is to change with it."""
    sources = [path for folder in ("cpp", "cuda", "python/src") for path in native_files(root, folder)]
    naming = [str(path.relative_to(root)) for path in sources if NCCL_NAME.search(path.read_text())]
    if len(naming) > 1:
        yield f"{naming[1]}: NCCL is named in one source file, not in {len(naming)}: {', '.join(naming)}"


def imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that a module imports, and of every `torch.autograd` that it reaches for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.autograd":
            yield node.lineno, "torch.autograd"


def python_violations(root: Path) -> Iterator[str]:
    package = root / "python" / "aliquot"
    for path in sorted([*(root / "python").rglob("*.py"), *(root / "tools").rglob("*.py")]):
        for line, name in imports(ast.parse(path.read_text())):
            where = f"{path.relative_to(root)}:{line}"
            if name.split(".")[0] == "torch" and package not in path.parents:
                yield f"{where}: torch is imported only in python/aliquot"
            if name.startswith("torch.autograd") and path != package / "hooks.py":
                yield f"{where}: autograd is touched only in python/aliquot/hooks.py"


def violations(root: Path) -> list[str]:
    """Every place under `root` that breaks a rule, as `path:line: rule`."""
    return [*native_violations(root), *nccl_violations(root), *python_violations(root)]


def main() -> int:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    found = violations(root)
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
