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

PACKAGE, CODE = "contourdiff", "scripts"
REFERENCE = re.compile(rf"\b{PACKAGE}(?=\.[a-z])|(?<=from ){PACKAGE}(?= import)")
TARGET = re.compile(rf'"({PACKAGE}(?:\.\w+)+)\.\w+"')
OUTSIDE_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?:\.\./){3}([^)#]*)[^)]*\)")
MAX_FILE_BYTES = 25 * 10**6
"""Limit of the model zoo; for a larger file it takes a link in ``large_files.yml``."""
DATA = ("assets", "templates")
"""Folders of a package that its code reads."""
SEARCH_PATH = (
    "$__import__('sys').path.insert(1, next(str(caller.frame.f_locals['self'].config_root_path.resolve().parent)"
    " for caller in __import__('inspect').stack(0)"
    " if 'config_root_path' in getattr(caller.frame.f_locals.get('self'), '__dict__', {})))"
)
"""First step of ``initialize``: find ``scripts``. MONAI adds the bundle's folder only before ``run``, which is too late
for ``monai.bundle.load`` and for a look at a workflow's parts; and a config cannot name its own folder."""


def export_bundle(output_dir: str | Path, bundle: str | Path | None = None) -> Path:
    """Write a copy of the bundle that needs nothing of this package, whole or not at all.

    The modules that its configs refer to, and those that they import, become ``scripts``. Configs are formatted as in
    the model zoo, and ``metadata.json`` requires this package no longer. Links of the model card that leave the bundle
    become plain text, and pictures outside are copied.

    Args:
        output_dir: new or empty folder; its name is the bundle's.
        bundle: folder of the bundle, see [`contourdiff.bundle.find_bundle`][].

    Returns ``output_dir``. Raises ``ValueError`` if it has content or is inside the bundle, or if the changelog does
    not have the version; ``FileNotFoundError`` for a missing bundle.

    References:
        https://github.com/Project-MONAI/model-zoo, CONTRIBUTING.md.
    """
    root, output_dir = find_bundle(bundle).resolve(), Path(output_dir).resolve()
    if output_dir.is_relative_to(root):
        raise ValueError(
            f"expected a folder outside the bundle {root}, got {output_dir}; choose another"
        )
    with atomic_folder(output_dir) as aside:
        ignored = shutil.ignore_patterns("eval", "__pycache__", ".*")
        shutil.copytree(root, aside, ignore=ignored, dirs_exist_ok=True)
        configs = sorted(aside.rglob("*.json"))
        text = "".join(path.read_text(encoding="utf-8") for path in configs)
        for name, source in _modules(set(TARGET.findall(text))).items():
            _write_module(aside / CODE, name, source)
        for path in configs:
            _rewrite_config(path)
        _rewrite_card(aside / "docs" / "README.md", root.parent.parent)
        for path in (path for path in aside.rglob("*") if path.stat().st_size > MAX_FILE_BYTES):
            logger.warning(
                "%s exceeds 25 MB; the model zoo takes a link in large_files.yml",
                path.relative_to(aside),
            )
    return output_dir


def _modules(names: Iterable[str]) -> dict[str, Path]:
    """Modules of this package by name, with all that they import of it, and their files."""
    folder = Path(__file__).parents[2]
    others = [path.stem for path in folder.iterdir() if path.stem != PACKAGE]
    finder = ModuleFinder(path=[str(folder)], excludes=others)
    for name in sorted(names):
        finder.import_hook(name)
    files = {name: module.__file__ for name, module in finder.modules.items()}  # type: ignore[attr-defined]
    return {
        name: Path(file) for name, file in files.items() if name.split(".")[0] == PACKAGE and file
    }


def _write_module(code: Path, name: str, source: Path) -> None:
    target = code.joinpath(*name.split(".")[1:])
    target = target / source.name if source.name == "__init__.py" else target.with_suffix(".py")
    target.parent.mkdir(parents=True, exist_ok=True)
    for folder in DATA if source.name == "__init__.py" else ():
        if (source.parent / folder).is_dir():
            shutil.copytree(source.parent / folder, target.parent / folder)
    target.write_text(REFERENCE.sub(CODE, source.read_text(encoding="utf-8")), encoding="utf-8")


def _rewrite_config(path: Path) -> None:
    config: dict[str, Any] = json.loads(REFERENCE.sub(CODE, path.read_text(encoding="utf-8")))
    if path.name == "metadata.json":
        config["required_packages_version"].pop(PACKAGE, None)
        if config["version"] not in config["changelog"]:
            raise ValueError(
                f"expected version {config['version']} in the changelog of {path.name}; describe it there"
            )
    if "_target_" in (root := config.get("bundle_root", "")) and root["_target_"].startswith(
        f"{CODE}."
    ):
        config["initialize"] = [SEARCH_PATH, *config.get("initialize", [])]
    path.write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")


def _rewrite_card(card: Path, repository: Path) -> None:
    def local(link: re.Match[str]) -> str:
        picture, text, path = link.groups()
        if not picture or not (repository / path).is_file():
            return text
        (card.parent / "images").mkdir(exist_ok=True)
        copy = shutil.copy(repository / path, card.parent / "images")
        return f"![{text}](images/{Path(copy).name})"

    card.write_text(OUTSIDE_LINK.sub(local, card.read_text(encoding="utf-8")), encoding="utf-8")
