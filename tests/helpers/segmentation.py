# SPDX-License-Identifier: Apache-2.0
"""Pairs of an MR and its label, and small bundles that are trained on them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monai.bundle import verify_metadata, verify_net_in_out

from contourdiff.segmentation.model_bundle import INFERENCE, METADATA, write_model_bundle
from helpers.paths import REPOSITORY
from helpers.volumes import oblique_affine, write_nifti

CLASSES = {"classes": ["bone"], "ct": {"bone": ["27-31"]}, "mr": {"bone": [2]}}
AFFINE = oblique_affine((4.0, 2.0, 2.0))
SMALL = {"image_size_px": [32, 32], "train_batch_size": 4, "learning_rate": 1e-2}
"""Settings of a quick training."""


def mr_with_bone(seed: int, shape: tuple[int, int, int] = (4, 34, 30)) -> tuple[Any, Any]:
    """Gray levels float32 of a volume with a bright block in every slice, and the mask of the block."""
    random = np.random.default_rng(seed)
    mask = np.zeros(shape, dtype=bool)
    row, column = random.integers(4, 12, 2)
    mask[:, row : row + 14, column : column + 14] = True
    gray = 60 + 150.0 * mask + random.normal(0, 5, shape)
    return gray.astype(np.float32), mask


def write_pairs(folder: Path, cases: int = 3) -> Path:
    """Pairs ``p0``, ``p1`` ... whose labels hold 27 and 31."""
    for number in range(cases):
        gray, mask = mr_with_bone(number)
        value = np.uint8(27 if number % 2 else 31)
        write_nifti(folder / f"p{number}_mr.nii.gz", gray, AFFINE)
        write_nifti(folder / f"p{number}_label.nii.gz", mask * value, AFFINE)
    return folder


def write_small_bundle(folder: Path, classes: dict[str, Any] = CLASSES, **options: Any) -> Path:
    """A bundle with a network of few channels; ``options`` as of `write_model_bundle`."""
    write_model_bundle(folder, classes, **options)
    config = folder / INFERENCE
    text = config.read_text()
    small = text.replace("[16, 32, 64, 128, 256]", "[4, 4, 8, 8, 8]")
    assert small != text
    config.write_text(small)
    return folder


def verify_with_monai(bundle: Path, tmp_path: Path) -> None:
    """MONAI's checks of network and metadata; the second one is skipped where its schema is absent."""
    options = {"meta_file": str(bundle / METADATA), "config_file": str(bundle / INFERENCE)}
    verify_net_in_out("network_def", device="cpu", **options)
    schema = REPOSITORY.parent / "shared" / "schemas" / "meta_schema_20240725.json"
    if not schema.is_file():
        pytest.skip("the metadata schema is not beside the repository")
    shutil.copy(schema, tmp_path / "schema.json")
    verify_metadata(meta_file=options["meta_file"], filepath=str(tmp_path / "schema.json"))
