# SPDX-License-Identifier: Apache-2.0
"""Find and read configs: the lab's own are in its folder ``configs``, all others in the bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from contourdiff.bundle import config_files, find_bundle, read_config

LAB_CONFIGS = Path(__file__).resolve().parent / "configs"


def lab_config(name: str) -> str:
    """Path of the lab's config of that name; any other name as it is, for the bundle to find."""
    path = LAB_CONFIGS / f"{name}.json"
    return str(path) if path.is_file() else name


def lab_config_files(names: Sequence[str], bundle: str | Path | None = None) -> list[str]:
    """Paths of a config and its overlays, by name or by path ``*.json``: the lab's first, then the bundle's.

    Raises ``FileNotFoundError`` if one is missing, ``ValueError`` if one is no JSON.
    """
    base, *overlays = [lab_config(name) for name in names]
    return config_files(bundle, overlays, base=base)


def read_lab_config(
    names: Sequence[str], settings: Mapping[str, Any], bundle: str | Path | None = None
) -> ConfigParser:
    """Parser of a config and its overlays with other settings; ``bundle_root`` is the bundle's folder.

    Raises as [`lab_config_files`][], and ``ValueError`` for a setting that the config does not have.
    """
    root = str(find_bundle(bundle).resolve())
    return read_config(lab_config_files(names, bundle), {"bundle_root": root, **settings})


def training_overlays(bundle: str | Path | None, overlays: Sequence[str]) -> list[str]:
    """Overlays of ``train.json`` for what overlays of ``inference.json`` translate with: ``train_<name>`` for each."""
    configs = find_bundle(bundle) / "configs"
    names = [f"train_{name}" for name in overlays]
    return [name for name in names if (configs / f"{name}.json").is_file()]
