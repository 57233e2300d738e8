# SPDX-License-Identifier: Apache-2.0
"""What is installed into the Python of 3D Slicer, and what is left as Slicer has it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PACKAGE = "contourdiff"
TORCH = ">=2.6"
"""Versions of PyTorch, which SlicerPyTorch installs for the GPU of the machine."""
SKIPPED = ("simpleitk", "requests", "torch")
"""Never installed: Slicer's SimpleITK knows its nodes, ``requests`` is in use, and ``torch`` is SlicerPyTorch's."""
PINNED = (*SKIPPED, "numpy", "scipy", "vtk")
"""Never replaced by another version, as they may be in use."""


def package_source(module: Path) -> str:
    """What pip installs: the repository that a module lies in, or else the package of that name.

    Args:
        module: file ``ContourDiff.py``.
    """
    for folder in module.resolve().parents:
        if (folder / "plugin" / PACKAGE / "__init__.py").is_file():
            return str(folder)
    return PACKAGE


def wanted(requirements: Iterable[str], installed: Mapping[str, str]) -> list[str]:
    """Requirements of a package that are to be installed, without extras, what is skipped, and what is there.

    Args:
        requirements: as ``importlib.metadata.requires`` lists them.
        installed: versions of the packages that are there, by their canonical names.

    Examples:
        >>> wanted(["monai>=1.5", "torch>=2.6", "tqdm", "dask; extra == 'scale'"], {"tqdm": "4.67"})
        ['monai>=1.5']
    """
    missing = []
    for text in requirements:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        if name in SKIPPED:
            continue
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        if name in installed and requirement.specifier.contains(installed[name], prereleases=True):
            continue
        missing.append(f"{requirement.name}{requirement.specifier}")
    return missing


def missing() -> list[str]:
    """What the package requires and this Python lacks; the package itself must be there."""
    listed = requires(PACKAGE) or []
    names = [Requirement(text).name for text in listed]
    return wanted(listed, installed_versions(names))


def constraints() -> str:
    """Content of a file for ``pip install --constraint`` that keeps the versions of `PINNED`."""
    versions = installed_versions(PINNED)
    return "".join(f"{name}=={number}\n" for name, number in versions.items())


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of the packages that are there, by their canonical names."""
    versions = {}
    for name in names:
        try:
            versions[canonicalize_name(name)] = version(name)
        except PackageNotFoundError:
            continue
    return versions
