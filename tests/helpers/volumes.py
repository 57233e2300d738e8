# SPDX-License-Identifier: Apache-2.0
"""Small volumes, and folders of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from contourdiff.data.itk_files import TO_LPS

OBLIQUE = np.array([[3.0, 0.2, 0, -40], [-0.2, 2.5, 0.1, 12], [0.0, -0.1, 4.0, -7], [0, 0, 0, 1]])
CASE_NAMES = ("a", "b", "c")
HOSTILE_NAME = """<script>alert(1)<b>"'&amp;{{1}} #?%41"""
"""Name of a case that a page must neither run nor take for markup or for parts of an address."""


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
    image = nib.Nifti1Image(data, affine, dtype=data.dtype)
    image.set_sform(affine, 2)
    image.set_qform(affine, 1)
    nib.save(image, path)
    return path


def oblique_affine(spacing_mm: tuple[float, float, float]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", (11, -7, 5), degrees=True).as_matrix() * spacing_mm
    affine[:3, 3] = (7.1, -31.7, 12.9)
    return affine


def assert_same_grid(result: nib.Nifti1Image, source: nib.Nifti1Image) -> None:
    assert result.shape == source.shape
    np.testing.assert_array_equal(result.affine, source.affine)
    for field in (
        "sform_code",
        "qform_code",
        "srow_x",
        "srow_y",
        "srow_z",
        "quatern_b",
        "qoffset_x",
        "pixdim",
    ):
        np.testing.assert_array_equal(result.header[field], source.header[field])


def read_voxels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def nibabel_of(image: Any) -> nib.Nifti1Image:
    """A SimpleITK image as nibabel's, voxels and affine."""
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return nib.Nifti1Image(sitk.GetArrayFromImage(image).transpose(), TO_LPS @ affine)


def make_dataset(folder: Path, names: tuple[str, ...] = CASE_NAMES) -> Path:
    for number, name in enumerate(names):
        ct = ball_ct((10, 30, 26), seed=number)
        write_nifti(folder / f"{name}.nii.gz", ct, OBLIQUE)
        write_nifti(
            folder / "labels" / f"{name}.nii.gz",
            (ct > 200).astype(np.uint8) * (number + 27),
            OBLIQUE,
        )
    return folder


def make_mr(folder: Path) -> Path:
    """Three volumes of four slices and three single slices, with stripes to see contours of."""
    rng = np.random.default_rng(0)
    for number in range(6):
        image = np.zeros((4 if number < 3 else 1, 40, 44), dtype=np.uint8)
        image[:, 4:36, 5:40] = 90
        for stripe in range(8, 34, 6):
            image[:, 6:34, stripe : stripe + 3] = rng.integers(140, 250)
        write_nifti(folder / f"mr{number}.nii.gz", image, np.diag([4.0, 2.2, 2.2, 1.0]))
    (folder / "index.csv").write_text(
        "file,split\n"
        + "".join(f"mr{n}.nii.gz,{'val' if n in (2, 5) else 'train'}\n" for n in range(6))
    )
    return folder
