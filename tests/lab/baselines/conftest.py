# SPDX-License-Identifier: Apache-2.0
"""Two small domains, and a training of each baseline on them that many tests look at."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from contourdiff_lab.baselines.training import train_baseline
from helpers.domains import TINY_BASELINE, write_domains

Train = Callable[..., Path]


@pytest.fixture(scope="session")
def settings() -> Callable[[str], dict[str, Any]]:
    """Settings of a method for two epochs a stage, by its name."""
    two_epochs = {
        **TINY_BASELINE,
        "max_epochs": 2,
        "epoch_length": 1,
        "batch_size": 2,
        "picture_interval": 9,
    }
    stages = {
        "segmentation_batch_size": 2,
        "segmentation_epoch_length": 1,
        "task_epochs": 2,
        "feature_epochs": 2,
    }

    def of(method: str) -> dict[str, Any]:
        return {**two_epochs, **stages} if method == "cycada" else two_epochs

    return of


@pytest.fixture(scope="session")
def domains(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of CT with labels, and of MR."""
    return write_domains(tmp_path_factory.mktemp("domains"))


@pytest.fixture(scope="session")
def train(domains: tuple[Path, Path], settings: Callable[[str], dict[str, Any]]) -> Train:
    """Train a method by its name to a folder, or go on there; further settings are those that are passed."""

    def run(method: str, folder: Path, **changes: Any) -> Path:
        return train_baseline(method, *domains, folder, **{**settings(method), **changes})

    return run


@pytest.fixture(scope="session")
def trained(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a finished training of a method by its name; each is trained once. Do not change its files."""

    @cache
    def of(method: str) -> Path:
        return train(method, tmp_path_factory.mktemp(method))

    return of
