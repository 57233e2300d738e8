# SPDX-License-Identifier: Apache-2.0
"""Two domains of the same kind of shapes, for unpaired translation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from helpers.volumes import write_nifti

CT_LEVELS = torch.tensor([-1.0, -0.4, 0.4])
MR_LEVELS = torch.tensor([-1.0, 0.3, 0.8])
"""Levels of background, body and bone in two domains of the same kind of shapes."""

TINY_BASELINE = {
    "image_size_px": [32, 32],
    "min_object_mm2": 100.0,
    "max_hole_mm2": 2000.0,
    "mr_min_object_mm2": 100.0,
    "mr_max_hole_mm2": 2000.0,
    "filter_classes": 3,
    "shift_px": 2,
    "generator_channels": 4,
    "generator_blocks": 1,
    "discriminator_channels": 4,
    "pool_size": 3,
    "val_fraction": 0.0,
    "device": "cpu",
}
"""Settings of a baseline for small slices, with small networks."""


def random_shapes(seed: int, levels: torch.Tensor, size: int = 24) -> dict[str, torch.Tensor]:
    """A body with two bones, at random places: ``image`` and ``label`` (classes), each ``(1, size, size)``."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size] / size - rng.uniform(0.4, 0.6, (2, 1, 1))
    radii = rng.uniform(0.3, 0.42, 2)
    classes = (np.hypot(rows / radii[0], columns / radii[1]) < 1).astype(np.int64)
    for _ in range(2):
        row, column = rng.uniform(-0.2, 0.2, 2)
        classes[np.hypot(rows - row, columns - column) < rng.uniform(0.08, 0.16)] = 2
    label = torch.from_numpy(classes)[None]
    return {"image": levels[label], "label": label.float()}


def write_domains(root: Path) -> tuple[Path, Path]:
    """Folders ``ct`` and ``mr`` of a volume of six slices each, of the same kind of shapes; the bones are vertebrae."""
    affine = np.diag([4.0, 2.2, 2.2, 1.0])
    for side, first, levels in (("ct", 0, [-1000.0, 0.0, 250.0]), ("mr", 6, [0.0, 70.0, 200.0])):
        items = [
            random_shapes(first + number, torch.tensor(levels), size=32) for number in range(6)
        ]
        image = torch.cat([item["image"] for item in items]).numpy()
        label = torch.cat([item["label"] for item in items]).numpy()
        image = image + np.random.default_rng(first).normal(0, 8, image.shape)
        write_nifti(root / side / "a.nii.gz", image.astype(np.int16), affine)
        if side == "ct":
            write_nifti(
                root / side / "labels" / "a.nii.gz", ((label == 2) * 27).astype(np.uint8), affine
            )
    return root / "ct", root / "mr"
