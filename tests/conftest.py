# SPDX-License-Identifier: Apache-2.0
"""Shared pieces: the bundle's folder, real data where they lie, a small network, small volumes."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from contourdiff.networks import ContourUNet

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIGS = REPOSITORY / "bundles" / "contourdiff_ct2mr" / "configs"
DATA = REPOSITORY.parent / "shared" / "data"

TINY_NETWORK = {
    "_target_": "contourdiff.networks.ContourUNet",
    "patch_size": 2,
    "channels": [32, 32],
    "attention_levels": [False, False],
    "num_res_blocks": 1,
    "num_head_channels": 32,
}


@pytest.fixture(scope="session")
def configs() -> Path:
    return CONFIGS


@pytest.fixture(scope="session")
def real_data() -> Path:
    if not DATA.is_dir():
        pytest.skip(f"real images are not at {DATA.parent.name}/{DATA.name} beside the repository")
    return DATA


@pytest.fixture
def tiny_network() -> ContourUNet:
    torch.manual_seed(0)
    return make_tiny_network()


def make_tiny_network() -> ContourUNet:
    """Untrained, but with an output that depends on the contour: the last layer is drawn, not zero."""
    network = ContourUNet(**{key: value for key, value in TINY_NETWORK.items() if key != "_target_"})
    torch.nn.init.normal_(network.out[2].conv.weight, std=0.05)
    return network.eval()


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.pt"
    torch.save(make_tiny_network().state_dict(), path)
    return path


def ball_ct(shape: tuple[int, int, int] = (24, 40, 36), seed: int = 0) -> np.ndarray:
    """A body of soft tissue with a bone in it, in air: int16 HU."""
    grid = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    radius = np.sqrt(sum(x**2 for x in grid))
    volume = np.full(shape, -1000.0)
    volume[radius < 0.95] = 40
    volume[(np.abs(grid[0]) < 0.6) & (np.hypot(grid[1] + 0.3, grid[2]) < 0.3)] = 500
    volume += np.random.default_rng(seed).normal(0, 10, shape)
    return volume.astype(np.int16)


def write_nifti(path: Path, data: np.ndarray, affine: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(data, affine)
    image.set_sform(affine, 2)
    image.set_qform(affine, 1)
    nib.save(image, path)
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
