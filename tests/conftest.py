# SPDX-License-Identifier: Apache-2.0
"""Shared pieces: the bundle's folder, real data where they lie, a small network, small volumes."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run in two processes

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from contourdiff.networks import ContourUNet
from helpers.networks import make_tiny_network
from helpers.paths import CONFIGS, DATA
from helpers.runs import run_tiny_inference
from helpers.volumes import HOSTILE_NAME, make_dataset


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with slow tests in both of two processes, each with files of its own, so that they end together.

    A process gets half of the tests at first, and takes tests from the end of the other's when it has none left.
    """
    slow = [item for item in items if item.get_closest_marker("slow")]
    quick = [item for item in items if not item.get_closest_marker("slow")]
    files = list(dict.fromkeys(item.path for item in slow))
    of_first = [item for item in slow if item.path in files[::2]]
    of_second = [item for item in slow if item.path in files[1::2]]
    rest = max(0, len(items) // 2 - len(of_first))
    items[:] = of_first + quick[:rest] + of_second + quick[rest:]


@pytest.fixture(scope="session")
def real_data() -> Path:
    if not DATA.is_dir():
        pytest.skip(f"real images are not at {DATA.parent.name}/{DATA.name} beside the repository")
    return DATA


@pytest.fixture
def tiny_network() -> ContourUNet:
    torch.manual_seed(0)
    return make_tiny_network()


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.pt"
    torch.save(make_tiny_network().state_dict(), path)
    return path


@pytest.fixture(scope="session")
def inference_parser() -> Callable[..., ConfigParser]:
    """Parser of inference.json with overrides, for its parts without a run."""

    def parse(*overlays: str, **overrides: object) -> ConfigParser:
        parser = ConfigParser()
        parser.read_config([str(CONFIGS / f"{name}.json") for name in ("inference", *overlays)])
        parser.update(overrides)
        return parser

    return parse


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Path) -> Path:
    """A folder of translations with its report: two cases, one with a hostile name and maps, and one that failed."""
    root = tmp_path_factory.mktemp("reported")
    dataset_dir = make_dataset(root / "ct", ("a", HOSTILE_NAME))
    (dataset_dir / "broken.nii.gz").write_bytes(b"no volume")
    with pytest.raises(ValueError, match="1 of 3 cases failed"):
        run_tiny_inference(
            dataset_dir,
            root / "mr",
            tiny_weights,
            report=True,
            save_fidelity_map=True,
            save_uncertainty_map=True,
        )
    return root / "mr"
