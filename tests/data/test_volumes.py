# SPDX-License-Identifier: Apache-2.0
"""Voxels equal nibabel's, and are decompressed once while they are kept."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import LoadImage

from contourdiff.data import volumes
from contourdiff.data.nifti import SourceGridReader
from contourdiff.data.volumes import keep_voxels, release_voxels, scaled_voxels, stored_voxels


def write(path: Path, dtype: str = "i2", scaling: tuple[float, float] = (1, 0)) -> Path:
    voxels = np.random.default_rng(0).integers(0, 100, (5, 6, 7)).astype(dtype)
    image = nib.Nifti1Image(voxels, np.eye(4), dtype=voxels.dtype)
    image.header.set_slope_inter(*scaling)
    nib.save(image, path)
    return path


@pytest.mark.parametrize("scaling", [(1, 0), (0.5, -10), (3, 0)])
@pytest.mark.parametrize("dtype", ["i2", "u1", "f4", "f8", ">i4"])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII.GZ"])
def test_voxels_equal_those_of_nibabel(
    name: str, dtype: str, scaling: tuple[float, float], tmp_path: Path
) -> None:
    path = write(tmp_path / name, dtype, scaling)
    expected = np.asanyarray(nib.load(path).dataobj)
    with keep_voxels():
        for _ in range(2):
            voxels = scaled_voxels(path)
            assert voxels.dtype == expected.dtype
            np.testing.assert_array_equal(voxels, expected)


def test_a_file_is_decompressed_once_while_it_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii.gz")
    assert stored_voxels(path) is not stored_voxels(path)
    with keep_voxels():
        first = stored_voxels(path)
        assert stored_voxels(path) is first
        release_voxels([path, None])
        assert stored_voxels(path) is not first


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii.gz")
    with keep_voxels():
        before = stored_voxels(path)
        write(path, "u1")
        assert stored_voxels(path).dtype != before.dtype


def test_nothing_is_kept_beyond_the_share_of_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = write(tmp_path / "a.nii.gz"), write(tmp_path / "b.nii.gz")
    monkeypatch.setattr(volumes, "physical_memory", lambda: 16 * 5 * 6 * 7 * 2)
    with keep_voxels():
        kept = stored_voxels(first)
        assert stored_voxels(second) is not stored_voxels(second)
        assert stored_voxels(first) is kept


@pytest.mark.parametrize("dtype", ["i2", "f4"])
def test_a_loaded_image_does_not_share_the_kept_voxels(dtype: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii.gz", dtype)
    expected = scaled_voxels(path)
    with keep_voxels():
        scaled_voxels(path)
        image = LoadImage(image_only=True, reader=SourceGridReader)(path)
        np.testing.assert_array_equal(image.numpy(), expected)
        image += 1
        np.testing.assert_array_equal(scaled_voxels(path), expected)


def test_a_damaged_checksum_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    noise = np.random.default_rng(0).integers(0, 30000, (40, 40, 40)).astype(np.int16)
    nib.save(nib.Nifti1Image(noise, np.eye(4)), path)
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(content)
    with pytest.raises(gzip.BadGzipFile):
        stored_voxels(path)


def test_a_file_with_too_few_voxels_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii.gz")
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-3]))
    with pytest.raises(OSError, match="expected 420 bytes of voxels, got 3 less"):
        stored_voxels(path)
