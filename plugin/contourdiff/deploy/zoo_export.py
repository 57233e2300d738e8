# SPDX-License-Identifier: Apache-2.0
"""The bundle as a pull request to MONAI's model zoo: inference and training alone, on MONAI's own data classes."""

from __future__ import annotations

import ast
import importlib
import json
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from contourdiff.bundle import BUNDLE_NAME, find_bundle
from contourdiff.config_checks import COMMENT, references
from contourdiff.data.atomic import atomic_folder, read_json
from contourdiff.limits import SettingError
from contourdiff.weights import import_safetensors, read_weights, sha256_of

logger = logging.getLogger(__name__)

PACKAGE = Path(__file__).parents[1]
TEMPLATES = Path(__file__).with_name("zoo")
CONFIGS = ("inference", "train")
OVERLAYS = ("fast", "cpu", "train_refiner", "multi_gpu_train")
KEPT = ("_desc_", "imports", "bundle_root", "dataset_dir", "train", "validate", "initialize", "run")
"""Entries of a config that nothing has to refer to."""
DOCUMENTS = ("LICENSE", "docs/data_license.txt", "configs/logging.conf")
PICTURES = ("docs/images/torso_ct_mr.png", "docs/images/agreement.png", "docs/images/loss.png")
LARGE_BYTES = 10**6
"""The zoo's hook refuses larger files, and its continuous integration downloads those of ``large_files.yml``."""
NO_ADDRESS = "https://example.org/upload-the-large-files-and-export-again-with--files-url"
WEIGHTS = re.compile(r"\bmodels/\w+\.pt\b")
"""Those of other anatomies have configs of their own, and stay out."""
MODULE = re.compile(r"\bcontourdiff(?=\.\w)|(?<=from )contourdiff(?= import)")
DOTTED = re.compile(r"\bcontourdiff(?:\.\w+)+")
READER = {"reader": "contourdiff.data.nifti.SourceGridReader"}


def export_to_zoo(
    output_dir: str | Path,
    bundle: str | Path | None = None,
    name: str = BUNDLE_NAME,
    files_url: str | None = None,
) -> Path:
    """Write what goes into a clone of the model zoo: ``models/<name>`` and ``ci/unit_tests/test_<name>.py``.

    Data are read and written by MONAI's own classes, so records, pictures, labels, DICOM and reports are not among the
    code. Weights are written as ``*.safetensors``, too.

    Args:
        output_dir: new or empty folder, which appears whole or not at all.
        bundle: folder of the bundle, see [`contourdiff.bundle.find_bundle`][].
        name: of the bundle in the zoo: letters, digits and ``_``.
        files_url: public address of a folder with the files above 1 MB, for ``large_files.yml``; ``None`` writes an
            address that has to be replaced.

    Returns:
        ``output_dir``.

    Raises:
        ValueError: for another ``name``, or a folder with content.
        FileNotFoundError: for a missing bundle or one of its files.
        ImportError: without ruff or safetensors.

    References:
        https://github.com/Project-MONAI/model-zoo, CONTRIBUTING.md and docs/readme_template.md.
    """
    if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
        raise SettingError(
            f"expected name to be letters, digits and _, a letter first, got {name!r}; pass another"
        )
    if find_spec("ruff") is None:
        raise ImportError("the zoo's format requires ruff: pip install 'contourdiff[zoo]'")
    import_safetensors()
    root = find_bundle(bundle).resolve()
    _check_translator(root)
    with atomic_folder(Path(output_dir).resolve()) as aside:
        folder = aside / "models" / name
        for file in (*DOCUMENTS, *PICTURES):
            _copy(root / file, folder / file)
        texts = _write_configs(root / "configs", folder / "configs")
        _write_code(texts, folder / "scripts")
        for weights in sorted(set(WEIGHTS.findall("".join(texts)))):
            _copy(root / weights, folder / weights)
            _write_safetensors(folder / weights)
        _write_cards(folder, name)
        _write_large_files(folder, files_url or NO_ADDRESS)
        test = aside / "ci" / "unit_tests" / f"test_{name}.py"
        _write_template("unit_test.py.txt", test, {"name": name})
        _format(aside)
    if files_url is None:
        logger.warning(
            "large_files.yml has no addresses that exist; upload its files, and pass --files_url"
        )
    return Path(output_dir)


def _check_translator(root: Path) -> None:
    """Raise ``FileNotFoundError`` for the bundle of another task, such as a segmentation."""
    configs = [f"configs/{name}.json" for name in (*CONFIGS, *OVERLAYS)]
    missing = [name for name in (*DOCUMENTS, *PICTURES, *configs) if not (root / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"expected the files of a translator in {root}, found no {', '.join(missing)}; add them, "
            "or copy a bundle that runs with MONAI alone as it is"
        )


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _write_configs(source: Path, target: Path) -> list[str]:
    """Write the configs, in the zoo's layout; returns their texts, before the code got its new name."""
    configs = {}
    for name in CONFIGS:
        changes = read_json(TEMPLATES / f"{name}.json")
        configs[name] = _reachable(_merged(read_json(source / f"{name}.json"), changes))
    for name in OVERLAYS:
        configs[name] = read_json(source / f"{name}.json")
    join = {"_target_": "contourdiff.training.distributed.join_processes", "device": "@device"}
    configs["multi_gpu_train"]["join"] = join
    texts = []
    for name, config in configs.items():
        resolved = DOTTED.sub(_defined, json.dumps(_plain(config), indent=4))
        texts.append(resolved)
        (target / f"{name}.json").write_text(MODULE.sub("scripts", resolved) + "\n", "utf-8")
    metadata = {**read_json(source / "metadata.json"), **read_json(TEMPLATES / "metadata.json")}
    (target / "metadata.json").write_text(json.dumps(metadata, indent=4) + "\n", "utf-8")
    return texts


def _merged(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The config with changed entries; a new one stands behind the one that it follows in ``changes``.

    ``"a#b#c"`` is an entry within others, which exist.
    """
    followers: dict[str, list[str]] = {}
    anchor = ""
    for name in changes:
        if name in config:
            anchor = name
        elif "#" not in name:
            followers.setdefault(anchor, []).append(name)
    merged: dict[str, Any] = {}
    for name, value in config.items():
        merged[name] = changes.get(name, value)
        for new in followers.get(name, []):
            merged[new] = changes[new]
    for name, value in changes.items():
        *outer, last = name.split("#")
        entry = merged
        for part in outer:
            entry = entry[part]
        entry[last] = value
    return merged


def _reachable(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that a run needs, and the comments above them."""
    needed: set[str] = set()
    waiting = [name for name in KEPT if name in config]
    while waiting:
        name = waiting.pop()
        if name not in needed and name in config:
            needed.add(name)
            waiting += [reference.split("::")[0] for reference in references(config[name])]
    kept: dict[str, Any] = {}
    comment = None
    for name, value in config.items():
        if name.startswith(COMMENT):
            comment = name
        elif name in needed:
            if comment is not None:
                kept[comment] = config[comment]
                comment = None
            kept[name] = value
    return kept


def _plain(config: Any) -> Any:
    """The config with MONAI's own reader."""
    if isinstance(config, dict):
        kept = {key: _plain(value) for key, value in config.items()}
        if READER.items() <= kept.items():
            del kept["reader"]
        return kept
    if isinstance(config, list):
        return [_plain(value) for value in config]
    return config


def _module_file(name: str) -> Path | None:
    """File of a module of this package; ``None`` for a package and anything else."""
    path = PACKAGE.parent.joinpath(*name.split(".")).with_suffix(".py")
    return path if path.is_file() else None


def _defined(match: re.Match[str]) -> str:
    """A name that a package passes on, as its own module defines it: ``contourdiff.transforms.contour.Contourd``."""
    name = match.group()
    parent, _, last = name.rpartition(".")
    if _module_file(name) or _module_file(parent):
        return name
    found = getattr(importlib.import_module(parent), last)
    return f"{found.__module__}.{last}"


def _imported(source: Path) -> Iterator[str]:
    """Modules of this package that a module imports."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def _write_code(texts: list[str], target: Path) -> None:
    """Write the modules that the configs refer to and those that they import, and packages that pass nothing on."""
    waiting: list[str] = []
    for text in texts:
        for name in DOTTED.findall(text):
            waiting += [name, name.rpartition(".")[0]]
    written: set[str] = set()
    while waiting:
        name = waiting.pop()
        source = _module_file(name) if name.startswith(PACKAGE.name) else None
        if source is None or name in written:
            continue
        written.add(name)
        waiting += _imported(source)
        path = target / source.relative_to(PACKAGE)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(MODULE.sub("scripts", source.read_text("utf-8")), "utf-8")
    for folder in {target, *(path.parent for path in target.rglob("*.py"))}:
        (folder / "__init__.py").write_text("# SPDX-License-Identifier: Apache-2.0\n", "utf-8")


def _write_safetensors(weights: Path) -> None:
    """Write the same tensors beside a file of weights."""
    path = weights.with_suffix(".safetensors")
    import_safetensors().save_file(read_weights(weights), path, {"format": "pt"})


def _write_cards(folder: Path, name: str) -> None:
    """Write the model card to ``docs``, and with Hugging Face's front matter to the root of the bundle."""
    metadata = read_json(folder / "configs" / "metadata.json")
    values = {"name": name, "version": metadata["version"], "docs": "", "root": "../"}
    _write_template("card.md", folder / "docs" / "README.md", values)
    values |= {"docs": "docs/", "root": ""}
    _write_template("card.md", folder / "README.md", values)
    front_matter = (TEMPLATES / "front_matter.md").read_text("utf-8")
    card = folder / "README.md"
    card.write_text(f"{front_matter}\n{card.read_text('utf-8')}", "utf-8")


def _write_template(template: str, path: Path, values: Mapping[str, str]) -> None:
    """Write a text with each ``{{name}}`` replaced."""
    text = (TEMPLATES / template).read_text("utf-8")
    for key, value in values.items():
        text = text.replace(f"{{{{{key}}}}}", value)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def _write_large_files(folder: Path, url: str) -> None:
    lines = ["large_files:"]
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.stat().st_size > LARGE_BYTES:
            file = path.relative_to(folder).as_posix()
            lines += [
                f'- path: "{file}"',
                f'  url: "{url.rstrip("/")}/{file}"',
                f'  hash_val: "{sha256_of(path)}"',
                '  hash_type: "sha256"',
            ]
    (folder / "large_files.yml").write_text("\n".join(lines) + "\n", "utf-8")


def _format(folder: Path) -> None:
    """Sort imports and format the code as isort and black do with the zoo's settings."""
    ruff = [sys.executable, "-m", "ruff"]
    lines = ["--isolated", "--no-cache", "--config", "line-length=120"]
    third_party = ["--config", "lint.isort.known-third-party=['scripts', 'utils']"]
    third_party += ["--config", "lint.isort.split-on-trailing-comma=false"]
    joined = ["--config", "format.skip-magic-trailing-comma=true", "--target-version", "py311"]
    sort = [*ruff, "check", "--quiet", "--select", "I", "--fix", *lines, *third_party, str(folder)]
    layout = [*ruff, "format", "--quiet", *lines, *joined, str(folder)]
    for command in (sort, layout, sort):  # shorter lines may join imports
        subprocess.run(command, check=True)
