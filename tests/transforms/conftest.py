# SPDX-License-Identifier: Apache-2.0
"""A real slice for the augmentations."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest


@pytest.fixture(scope="session")
def thorax_slice(real_data: Path) -> dict[str, np.ndarray]:
    """Sagittal slice of the thorax, windowed to [-200, 300] HU, and the classes of its vertebrae: ``(1, 133, 133)``."""
    folder = real_data / "ct"
    ct = nib.load(folder / "thorax_ct.nii.gz").get_fdata()[43, 80:213, :133]
    label = nib.load(folder / "thorax_vertebrae.nii.gz").get_fdata()[43, 80:213, :133]
    image = (ct.clip(-200, 300) + 200) / 500
    return {"image": image[None].astype(np.float32), "label": label[None]}
