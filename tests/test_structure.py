# SPDX-License-Identifier: MIT
"""How the modules lie: none needs, by whatever way, one that needs it."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

Imports = dict[str, dict[str, str]]  # by module: each that it imports, and the file and line where


def find_imports(root: Path, folder: str, package: bool = True) -> Imports:
    """The imports of a folder's modules from each other, those in functions and for types included.

    Args:
        package: the folder is one; else its modules are imported by their bare names.
    """
    files = {}
    for path in sorted((root / folder).rglob("*.py")):
        parts = path.relative_to(root if package else root / folder).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    found: Imports = {name: {} for name in files}
    for name, path in files.items():
        parent = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for target in _targets(node, parent, files):
                where = f"{path.relative_to(root)}:{getattr(node, 'lineno', 0)}"
                found[name].setdefault(target, where)
    return found


def _targets(node: ast.AST, parent: str, known: Mapping[str, Path]) -> Iterator[str]:
    """Those of the known modules that a statement imports; what is no module is its package's."""
    if isinstance(node, ast.Import):
        names = [(alias.name, "") for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        base = parent.split(".")[: len(parent.split(".")) - node.level + 1] if node.level else []
        module = ".".join([*base, *([node.module] if node.module else [])])
        names = [(module, alias.name) for alias in node.names]
    else:
        return
    for module, name in names:
        whole = f"{module}.{name}"
        if whole in known:
            yield whole
        elif module in known:
            yield module


def find_circle(imports: Imports) -> list[str]:
    """A shortest way from a module back to itself, a line for each import; empty if there is none."""
    best: list[str] = []
    for start in imports:
        ways: dict[str, list[str]] = {start: []}
        queue = [start]
        for name in queue:  # grows meanwhile: the nearest come first
            for target, where in imports[name].items():
                way = [*ways[name], f"{where}: {name} imports {target}"]
                if target == start and (not best or len(way) < len(best)):
                    best = way
                if target not in ways:
                    ways[target] = way
                    queue.append(target)
    return best


@pytest.mark.parametrize(("folder", "package"), [("uswap", True), ("demos", False)])
def test_no_circle(folder: str, package: bool) -> None:
    """No module imports one that imports it, be it in a function, for types only, or by way of others."""
    imports = find_imports(ROOT, folder, package)
    assert len(imports) > 5
    circle = find_circle(imports)
    assert not circle, "modules import each other in a circle:\n" + "\n".join(circle)


@pytest.mark.parametrize(
    "back",
    [
        "from .. import one",
        "from ..one import thing",
        "from .. import thing",  # of the package, which imports the module
        "import package.one as other",
        "from package.one import thing",
        "def function():\n    from .. import one",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..one import thing",
        "from . import thing",  # of the package in between
    ],
)
def test_circles_are_found(back: str, tmp_path: Path) -> None:
    """A circle is seen however it is closed, and named by its lines."""
    inner = tmp_path / "package" / "inner"
    inner.mkdir(parents=True)
    (inner.parent / "__init__.py").write_text("from .one import thing\n")
    (inner.parent / "one.py").write_text("import os\n\nfrom .inner import two\n\nthing = two\n")
    (inner / "__init__.py").write_text("from .two import *\n")
    (inner / "two.py").write_text("import sys\n")
    assert find_circle(find_imports(tmp_path, "package")) == []
    (inner / "two.py").write_text(back + "\n")
    circle = find_circle(find_imports(tmp_path, "package"))
    line = len(back.splitlines())
    assert any(one.startswith(f"package/inner/two.py:{line}: ") for one in circle), circle
    assert len(circle) in (2, 3)
