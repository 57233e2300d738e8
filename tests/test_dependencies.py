# SPDX-License-Identifier: Apache-2.0
"""Packages import in one direction, modules stay small, and configs stay readable."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import REPOSITORY

PACKAGE = REPOSITORY / "plugin" / "contourdiff"
MAX_LINES = 300
MAX_FUNCTION_LINES = 40
MAX_PARAMETERS = 10
TORCH_ALONE = ("contours", "sampling")
"""Layers without MONAI."""
ORDER = (
    "contours",
    "sampling",
    "networks",
    "weights",
    "data",
    "checkpoints",
    "phantom",
    "transforms",
    "metrics",
    "config_checks",
    "logs",
    "inference",
    "report",
    "training",
    "bundle",
    "cohort",
    "installation",
    "translation",
    "baselines",
    "evaluation",
    "deploy",
    "cli",
    "__main__",
)
"""A layer imports only from those before it."""
SOCKETS = {"ChunkedResample.__call__", "InPlaneResampled.__call__"}
"""Callables whose parameters MONAI prescribes."""
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def layer_of(path: Path) -> str:
    """Module or package directly below ``contourdiff``."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_names(tree: ast.AST, package: str) -> Iterator[str]:
    """Full dotted names of all imports, anywhere in a module; ``package`` resolves relative ones."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = (
                package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            )
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def violations(source: str, layer: str, package: str = "contourdiff") -> list[str]:
    """Imports of ``source``, a module of ``layer``, that the order forbids."""
    if layer not in ORDER:
        return [f"{layer} is no layer"]
    forbidden = []
    for name in imported_names(ast.parse(source), package):
        top, *rest = name.split(".")
        if top == "monai" and layer in TORCH_ALONE:
            forbidden.append(f"{layer} imports {name}")
        if top != "contourdiff" or not rest or rest[0] in ("__version__", layer):
            continue
        if rest[0] not in ORDER or ORDER.index(rest[0]) > ORDER.index(layer):
            forbidden.append(f"{layer} imports {name}")
    return forbidden


def package_of(path: Path) -> str:
    return ".".join(["contourdiff", *path.relative_to(PACKAGE).parent.parts])


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_layers_before_its_own(path: Path) -> None:
    assert violations(path.read_text(encoding="utf-8"), layer_of(path), package_of(path)) == []


def test_modules_form_no_cycle() -> None:
    names = {
        ".".join(["contourdiff", *path.relative_to(PACKAGE).with_suffix("").parts]): path
        for path in MODULES
    }
    below: dict[str, set[str]] = {}
    for name, path in names.items():
        imported = set(
            imported_names(ast.parse(path.read_text(encoding="utf-8")), package_of(path))
        )
        below[name] = {
            other
            for other in names
            if other != name
            for one in imported
            if f"{one}.".startswith(f"{other}.")
        }
    for _ in range(len(below)):  # drop modules that depend on nothing that is left
        below = {
            name: others & below.keys() for name, others in below.items() if others & below.keys()
        }
    assert below == {}


@pytest.mark.parametrize(
    ("layer", "source"),
    [
        ("contours", "import monai"),
        ("sampling", "def f():\n    from monai.data import MetaTensor"),
        ("sampling", "from contourdiff.networks import ContourUNet"),
        ("networks", "import contourdiff.bundle"),
        ("transforms", "from contourdiff import inference"),
        ("metrics", "from contourdiff.inference.denoiser import Denoiser"),
        ("evaluation", "from contourdiff.cli import main"),
        ("data", "from contourdiff.nowhere import thing"),
        ("nowhere", "import numpy"),
    ],
)
def test_the_order_is_enforced(layer: str, source: str) -> None:
    assert len(violations(source, layer)) == 1


def test_the_package_itself_imports_nothing() -> None:
    source = (PACKAGE / "__init__.py").read_text(encoding="utf-8")
    assert [
        name
        for name in imported_names(ast.parse(source), "contourdiff")
        if name.startswith("contourdiff")
    ] == []


def test_there_is_no_utils() -> None:
    assert [
        path for path in MODULES if path.stem in {"utils", "util", "helpers", "misc", "common"}
    ] == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_and_functions_stay_small(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= MAX_LINES
    for owner, function in functions(ast.parse(source)):
        name = f"{owner}.{function.name}" if owner else function.name
        body = function.body[1:] if ast.get_docstring(function) else function.body
        lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
        assert lines <= MAX_FUNCTION_LINES, f"{name} has {lines} lines of code"
        arguments = function.args
        count = len([*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]) - bool(owner)
        public = not function.name.startswith("_") or function.name in ("__init__", "__call__")
        assert not public or count <= MAX_PARAMETERS or name in SOCKETS, (
            f"{name} has {count} parameters"
        )


def functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Every function and method, with the name of its class."""
    for node in ast.walk(tree):
        owner = node.name if isinstance(node, ast.ClassDef) else ""
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef):
                yield owner, child


def test_the_package_stays_small() -> None:
    assert (
        sum(len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.rglob("*.py"))
        <= 12900
    )
