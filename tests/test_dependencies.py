# SPDX-License-Identifier: Apache-2.0
"""What import-linter does not check (its contracts are in ``pyproject.toml``)."""

from __future__ import annotations

import subprocess
import sys

import pytest

from helpers.paths import REPOSITORY

HEAVY = {"matplotlib", "monai", "nibabel", "numpy", "scipy", "torch"}
VAGUE_NAMES = {"common", "helpers", "misc", "util", "utils"}


@pytest.mark.parametrize("package", ["contourdiff", "contourdiff_lab"])
def test_importing_a_package_imports_nothing_else(package: str) -> None:
    """So that the command line answers at once, and a part is imported without the others."""
    program = f"import sys, {package}; print(*sys.modules)"
    printed = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    modules = set(printed.stdout.decode().split())
    assert package in modules
    assert {name for name in modules if name.startswith(f"{package}.")} == set()
    assert modules & HEAVY == set()


@pytest.mark.parametrize("package", ["contourdiff", "contourdiff_lab"])
def test_no_module_has_a_name_that_says_nothing(package: str) -> None:
    names = {path.stem for path in (REPOSITORY / "plugin" / package).rglob("*.py")}
    assert names & VAGUE_NAMES == set()
