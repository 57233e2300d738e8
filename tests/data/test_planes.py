# SPDX-License-Identifier: Apache-2.0
"""Planes of a volume equal the slices of the resampled volume."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage, ResampleToMatch, Spacingd

from contourdiff.data.planes import ResampledPlanes
from helpers.volumes import ball_ct, oblique_affine, write_nifti


def tilted(spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Oblique affine with a gantry tilt."""
    affine = oblique_affine(spacing_mm)
    affine[:3, 2] += 0.3 * affine[:3, 1]
    return affine


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_plane_is_the_slice_of_the_whole_volume_resampled(axis: int, tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "case.nii.gz", ball_ct((20, 30, 26)), tilted((3.0, 2.5, 3.1)))
    volume = LoadImage(image_only=True, ensure_channel_first=True)(path)
    pixdim = [-1.0 if other == axis else 2.2 for other in range(3)]
    target = Spacingd("image", pixdim=pixdim)({"image": volume})["image"]
    whole = ResampleToMatch(mode="bilinear", padding_mode="zeros")(
        ((volume + 200) / 500).clamp(0, 1), target
    )
    of_file, of_volume = (ResampledPlanes(source, window=(-200, 300)) for source in (path, volume))
    for position in range(target.shape[1 + axis]):
        plane = of_file.plane(target, axis, position, "bilinear")
        np.testing.assert_allclose(plane, np.asarray(whole[0]).take(position, axis=axis), atol=1e-6)
        np.testing.assert_array_equal(of_volume.plane(target, axis, position, "bilinear"), plane)


@pytest.mark.parametrize("scaling", [(1, 0), (0.5, -10)])
@pytest.mark.parametrize("name", ["case.nii", "case.nii.gz"])
def test_a_plane_of_a_file_has_the_scaled_values_of_its_slice(
    name: str, scaling: tuple[float, float], tmp_path: Path
) -> None:
    """Scaled or not, compressed or not."""
    stored = np.random.default_rng(0).integers(-999, 2000, (4, 5, 67)).astype(np.int16)
    image = nib.Nifti1Image(stored, np.eye(4))
    image.header.set_slope_inter(*scaling)
    nib.save(image, tmp_path / name)
    volume = MetaTensor(
        torch.as_tensor(nib.load(tmp_path / name).get_fdata(dtype=np.float32))[None],
        affine=np.eye(4),
    )
    planes = ResampledPlanes(tmp_path / name)
    for position in range(stored.shape[2]):
        plane = planes.plane(volume, 2, position, "nearest")
        np.testing.assert_allclose(plane, np.asarray(volume[0, ..., position]), rtol=1e-6)
    assert isinstance(planes.voxels, np.memmap) == (name == "case.nii")
