# SPDX-License-Identifier: Apache-2.0
"""DICOM series: read on the grid that other readers give, or refused with the reason."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from contourdiff.data.dicom import has_ct_series, read_ct_series
from contourdiff.data.itk_files import convert_to_nifti
from contourdiff.data.translation_cases import TranslationCases
from helpers import AXIAL, ball_ct, nibabel_of, write_series

pydicom = pytest.importorskip("pydicom")

REAL = Path(pydicom.__file__).parent / "data" / "test_files" / "dicomdirtests"
"""Real series of two patients, of 16 x 16 pixels each, that come with pydicom."""
DCM2NIIX = shutil.which("dcm2niix", path=f"{Path(sys.executable).parent}:/usr/bin:/usr/local/bin")
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)


VOLUME = ball_ct((6, 20, 24))


@pytest.mark.parametrize("orientation", [AXIAL, SAGITTAL])
def test_a_series_lies_where_its_tags_say(orientation: tuple[float, ...], tmp_path: Path) -> None:
    write_series(tmp_path / "a" / "deep", VOLUME, orientation=orientation)
    convert_to_nifti(tmp_path / "a", tmp_path / "a.nii.gz")
    image = nib.load(tmp_path / "a.nii.gz")
    assert image.get_data_dtype() == np.int16
    np.testing.assert_array_equal(np.asarray(image.dataobj), VOLUME.transpose(2, 1, 0))
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    for voxel in ((0, 0, 0), (23, 0, 0), (0, 19, 0), (0, 0, 5), (3, 4, 2)):
        lps = np.array((-20, -31, 12.5)) + row * 0.75 * voxel[0] + column * 1.5 * voxel[1]
        lps = lps + np.cross(row, column) * 2.5 * voxel[2]
        np.testing.assert_allclose(
            image.affine @ [*voxel, 1], [-lps[0], -lps[1], lps[2], 1], atol=1e-3
        )


def voxel_of_world(image: nib.Nifti1Image, world: np.ndarray) -> Any:
    voxel = np.rint(np.linalg.inv(image.affine) @ world)[:3].astype(int)
    return np.asarray(image.dataobj)[tuple(voxel)]


@pytest.mark.skipif(DCM2NIIX is None, reason="dcm2niix is not installed")
@pytest.mark.parametrize("series", ["real", "written"])
def test_the_grid_is_that_of_dcm2niix_and_simpleitk(series: str, tmp_path: Path) -> None:
    folder = (
        REAL / "98892001" / "CT5N" if series == "real" else write_series(tmp_path / "a", VOLUME)
    )
    image = nibabel_of(read_ct_series(folder))
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    plain = nibabel_of(sitk.ReadImage(files))
    np.testing.assert_allclose(image.affine, plain.affine, atol=1e-3)
    np.testing.assert_array_equal(np.asarray(image.dataobj), np.asarray(plain.dataobj))
    (tmp_path / "out").mkdir()
    subprocess.run(
        [str(DCM2NIIX), "-f", "x", "-o", tmp_path / "out", folder], check=True, capture_output=True
    )
    other = nib.load(tmp_path / "out" / "x.nii")
    assert other.shape == image.shape
    corners = np.array(
        [
            [i, j, k, 1]
            for i in (0, image.shape[0] - 1)
            for j in (0, 1)
            for k in (0, image.shape[2] - 1)
        ]
    )
    for world in corners @ image.affine.T:
        voxel = np.linalg.inv(other.affine) @ world
        np.testing.assert_allclose(other.affine @ np.rint(voxel), world, atol=1e-3)
        assert voxel_of_world(other, world) == voxel_of_world(image, world)


def tilted(data: Any, number: int) -> None:
    data.ImagePositionPatient[1] += 0.4 * number


def turned(data: Any, number: int) -> None:
    data.ImageOrientationPatient = list(SAGITTAL if number > 3 else AXIAL)


def irregular(data: Any, number: int) -> None:
    data.ImagePositionPatient[2] += 0.3 * (number > 2)


def repeated(data: Any, number: int) -> None:
    data.ImagePositionPatient[2] -= 2.5 * (number == 5)


def mixed(data: Any, number: int) -> None:
    data.PixelSpacing = [1.5, 0.75 + 0.1 * (number == 2)]


def without_position(data: Any, number: int) -> None:
    del data.ImagePositionPatient


def magnetic(data: Any, number: int) -> None:
    data.Modality = "MR"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (tilted, r"gantry tilt of 9\.09 degrees"),
        (turned, "of one orientation, size and pixel spacing .* got a mixture"),
        (
            irregular,
            r"equal distances .* got 2\.800 mm after slice 3 of 6 where others have 2\.500 mm",
        ),
        (repeated, r"got 0\.000 mm after slice 5"),
        (mixed, "got a mixture"),
        (without_position, "expected position, orientation and spacing in every file"),
        (magnetic, r"expected one CT series in .*, got 1\.2\.3\.1 \(MR 'bone 1', 6 slices\)"),
    ],
)
def test_what_is_no_regular_ct_stack_is_refused(
    change: Callable[[Any, int], None], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        read_ct_series(write_series(tmp_path / "a", VOLUME, change))


def test_a_missing_slice_of_a_real_series_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"got 202\.500 mm after slice 1 of 4 where others have 1\.250 mm"
    ):
        read_ct_series(REAL / "77654033" / "CT2")


def test_localizers_are_skipped_and_series_are_chosen_by_uid(tmp_path: Path) -> None:
    study = REAL / "98892001"  # two localizers and five axial slices
    assert read_ct_series(study).GetSize() == (16, 16, 5)
    with pytest.raises(ValueError, match="expected one CT series"):
        read_ct_series(study / "CT2N")
    write_series(tmp_path / "both", VOLUME)
    write_series(tmp_path / "both" / "2", VOLUME[:4], uid="1.2.3.2")
    message = r"got 1\.2\.3\.1 \(CT 'bone 1', 6 slices\); 1\.2\.3\.2 \(CT 'bone 2', 4 slices\); pass the UID of one"
    with pytest.raises(ValueError, match=message):
        read_ct_series(tmp_path / "both")
    assert read_ct_series(tmp_path / "both", "1.2.3.2").GetSize()[2] == 4
    with pytest.raises(ValueError, match=r"expected the CT series 9 in"):
        read_ct_series(tmp_path / "both", "9")
    with pytest.raises(ValueError, match="expected a DICOM folder"):
        read_ct_series(tmp_path / "nowhere")


def test_lossless_compression_is_read(tmp_path: Path) -> None:
    plain = write_series(tmp_path / "plain", VOLUME)

    def compress(data: Any, number: int) -> None:
        data.compress(pydicom.uid.RLELossless)

    packed = write_series(tmp_path / "packed", VOLUME, compress)
    first, second = (sitk.GetArrayFromImage(read_ct_series(folder)) for folder in (plain, packed))
    np.testing.assert_array_equal(first, second)


def test_a_folder_of_studies_is_a_folder_of_cases(tmp_path: Path) -> None:
    ct = tmp_path / "ct"
    write_series(ct / "anna", VOLUME)
    write_series(ct / "bert", VOLUME, tilted)
    (ct / "notes").mkdir()
    (ct / "notes" / "read.me").write_text("no image")
    assert [has_ct_series(path) for path in sorted(ct.iterdir())] == [True, True, False]
    cases = TranslationCases(ct, tmp_path / "mr")
    cases.check()
    (item,) = cases.items
    assert (item["image"], item["source"]) == (
        str(tmp_path / "mr" / "ct" / "anna.nii.gz"),
        "anna",
    )
    assert "gantry tilt" in cases.failures["bert"]
    alone = TranslationCases(ct / "anna", tmp_path / "alone")
    alone.check()
    assert [Path(item["image"]).name for item in alone.items] == ["anna.nii.gz"]
