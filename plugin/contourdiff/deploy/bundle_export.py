# SPDX-License-Identifier: Apache-2.0
"""A stand-alone copy of the bundle, with its code in ``scripts``, as MONAI's model zoo hosts it."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Iterable
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any

from contourdiff.bundle import find_bundle
from contourdiff.data.atomic import atomic_folder

logger = logging.getLogger(__name__)

PACKAGE = "contourdiff"
CODE = "scripts"
REFERENCE = re.compile(rf"\b{PACKAGE}(?=\.[a-z])|(?<=from ){PACKAGE}(?= import)")
TARGET = re.compile(rf'"({PACKAGE}(?:\.\w+)+)\.\w+"')
OUTSIDE_LINK = re.compile(r"!?\[([^\]]*)\]\((?:\.\./){2,}[^)]*\)")
MAX_FILE_BYTES = 25 * 10**6
"""Limit of the model zoo; for a larger file it takes a link in ``large_files.yml``."""
IGNORED = shutil.ignore_patterns("eval", "__pycache__", ".*")


def export_bundle(output_dir: str | Path, bundle: str | Path | None = None) -> Path:
    """Write a copy of the bundle that needs nothing of this package, whole or not at all.

    The modules that its configs refer to, and those that they import, become ``scripts``. Configs are formatted as in
    the model zoo, and ``metadata.json`` requires this package no longer. Links of the model card that leave the bundle
    become plain text.

    Args:
        output_dir: new or empty folder; its name is the bundle's.
        bundle: folder of the bundle, see [`contourdiff.bundle.find_bundle`][].

    Returns ``output_dir``. Raises ``ValueError`` if it has content or is inside the bundle, or if the changelog does
    not have the version; ``FileNotFoundError`` for a missing bundle.

    References:
        https://github.com/Project-MONAI/model-zoo, CONTRIBUTING.md.
    """
    root = find_bundle(bundle).resolve()
    output_dir = Path(output_dir).resolve()
    if output_dir.is_relative_to(root):
        raise ValueError(
            f"expected a folder outside the bundle {root}, got {output_dir}; choose another"
        )
    with atomic_folder(output_dir) as aside:
        shutil.copytree(root, aside, ignore=IGNORED, dirs_exist_ok=True)
        configs = sorted(aside.rglob("*.json"))
        _write_code(aside / CODE, configs)
        for path in configs:
            _rewrite_config(path)
        _rewrite_card(aside / "docs" / "README.md")
        for path in aside.rglob("*"):
            if path.stat().st_size > MAX_FILE_BYTES:
                name = path.relative_to(aside)
                logger.warning(
                    "%s exceeds 25 MB; the model zoo takes a link in large_files.yml", name
                )
    return output_dir


def _write_code(code: Path, configs: Iterable[Path]) -> None:
    """Write the modules that ``configs`` refer to, with all that they import of this package, and their data."""
    package = Path(__file__).parents[1]
    siblings = [path.stem for path in package.parent.iterdir() if path.stem != PACKAGE]
    finder = ModuleFinder(path=[str(package.parent)], excludes=siblings)
    for config in configs:
        for name in TARGET.findall(config.read_text(encoding="utf-8")):
            finder.import_hook(name)
    for module in finder.modules.values():
        source = Path(module.__file__ or "")  # type: ignore[attr-defined]
        if source.is_relative_to(package):
            target = code / source.relative_to(package)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(_renamed(source), encoding="utf-8")
    for data in (*package.rglob("assets"), *package.rglob("templates")):
        target = code / data.relative_to(package)
        if target.parent.is_dir():
            shutil.copytree(data, target, dirs_exist_ok=True)


def _renamed(path: Path) -> str:
    """Text of a file, which refers to the modules by their new names."""
    return REFERENCE.sub(CODE, path.read_text(encoding="utf-8"))


def _rewrite_config(path: Path) -> None:
    config: dict[str, Any] = json.loads(_renamed(path))
    if path.name == "metadata.json":
        config["required_packages_version"].pop(PACKAGE, None)
        if config["version"] not in config["changelog"]:
            raise ValueError(
                f"expected version {config['version']} in the changelog of {path.name}; describe it there"
            )
    path.write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")


def _rewrite_card(card: Path) -> None:
    """Make text of links and pictures that leave the bundle."""
    card.write_text(OUTSIDE_LINK.sub(r"\1", card.read_text(encoding="utf-8")), encoding="utf-8")
