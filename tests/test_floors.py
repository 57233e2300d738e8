# SPDX-License-Identifier: Apache-2.0
"""The house has floors: a module imports from its own floor and those below, and rooms stay small."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PLUGIN = Path(__file__).parents[1] / "plugin"
PACKAGE = PLUGIN / "contourdiff"
MAX_LINES = 350

FLOORS = (
    {"allocator", "contours", "files", "noise", "solvers", "selection", "phantom"},
    {
        "anatomy",
        "transforms",
        "inferers",
        "networks",
        "handlers",
        "metrics",
        "datalists",
        "datasets",
        "engines",
        "flicker",
        "labels",
        "checks",
        "writers",
        "bundles",
    },
    {"translate", "evaluation", "report"},
    {"cli", "__main__"},
)
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def floor_of(room: str) -> int | None:
    return next((floor for floor, rooms in enumerate(FLOORS) if room in rooms), None)


def room_of(path: Path) -> str:
    """Module or subpackage directly below the package."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_names(tree: ast.AST, package: str) -> Iterator[str]:
    """Full dotted names of all that is imported, anywhere in the module; ``package`` resolves relative imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def violations(source: str, room: str, package: str = "contourdiff") -> list[str]:
    """What ``source``, a module of ``room``, imports against the plan."""
    floor = floor_of(room)
    if floor is None:
        return [f"{room} lies on no floor"]
    found = []
    for name in imported_names(ast.parse(source), package):
        top, *rest = name.split(".")
        if top == "monai" and floor == 0:
            found.append(f"{room} (floor 0) imports {name}")
        if top != "contourdiff" or not rest or rest[0] == "__version__":
            continue
        other = floor_of(rest[0])
        if other is None or other > floor:
            found.append(f"{room} (floor {floor}) imports {name} (floor {other})")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_nothing_from_above(path: Path) -> None:
    package = ".".join(["contourdiff", *path.relative_to(PACKAGE).parent.parts])
    assert violations(path.read_text(encoding="utf-8"), room_of(path), package) == []


def test_package_itself_imports_nothing_of_its_own() -> None:
    source = (PACKAGE / "__init__.py").read_text(encoding="utf-8")
    assert [name for name in imported_names(ast.parse(source), "contourdiff") if name.startswith("contourdiff")] == []


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("contours", "import monai"),
        ("noise", "def f():\n    from monai.data import MetaTensor"),
        ("solvers", "from contourdiff.networks import ContourUNet"),
        ("selection", "from .networks import ContourUNet"),
        ("phantom", "from . import writers"),
        ("networks", "import contourdiff.translate"),
        ("transforms", "from contourdiff import report"),
        ("evaluation", "from contourdiff.cli import main"),
        ("checks", "from contourdiff.nowhere import thing"),
        ("nowhere", "import numpy"),
    ],
)
def test_the_plan_is_enforced(room: str, source: str) -> None:
    assert len(violations(source, room)) == 1


@pytest.mark.parametrize(
    ("room", "source", "package"),
    [
        ("contours", "import numpy, torch", "contourdiff"),
        ("selection", "from contourdiff.solvers import ddim", "contourdiff"),
        ("transforms", "from .array import Contour", "contourdiff.transforms"),
        ("transforms", "from ..contours import contour_of", "contourdiff.transforms"),
        ("report", "from contourdiff import __version__", "contourdiff"),
        ("cli", "from contourdiff.translate import translate\nimport monai", "contourdiff"),
    ],
)
def test_the_plan_allows_what_lies_below_and_beside(room: str, source: str, package: str) -> None:
    assert violations(source, room, package) == []


def test_same_floor_imports_form_no_cycle() -> None:
    below: dict[str, set[str]] = {}
    for path in MODULES:
        package = ".".join(["contourdiff", *path.relative_to(PACKAGE).parent.parts])
        names = imported_names(ast.parse(path.read_text(encoding="utf-8")), package)
        rooms = {name.split(".")[1] for name in names if name.startswith("contourdiff.")}
        below.setdefault(room_of(path), set()).update(rooms - {room_of(path), "__version__"})
    for _ in range(len(below)):  # take away what depends on nothing that is left
        below = {room: others & below.keys() for room, others in below.items() if others & below.keys()}
    assert below == {}


def test_there_is_no_utils() -> None:
    assert [path for path in PLUGIN.rglob("*.py") if path.name in {"utils.py", "util.py"}] == []


@pytest.mark.parametrize("path", sorted(PLUGIN.rglob("*.py")), ids=lambda path: str(path.relative_to(PLUGIN)))
def test_rooms_stay_small(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{path.name} has {lines} lines, at most {MAX_LINES} are wanted: split it"
