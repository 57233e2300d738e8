# SPDX-License-Identifier: Apache-2.0
"""DICOM series: read on the grid that other readers give, or refused with the reason."""

from __future__ import annotations

import os
import re
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
from contourdiff.data.dicom_planes import GROUP_OF
from contourdiff.data.itk_files import convert_to_nifti
from contourdiff.data.translation_cases import TranslationCases
from helpers.dicom import AXIAL, write_series
from helpers.volumes import ball_ct, nibabel_of

pydicom = pytest.importorskip("pydicom", minversion="3")
Dataset = pydicom.dataset.Dataset

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
def test_the_grid_of_a_series_is_that_of_dcm2niix_and_simpleitk(
    series: str, tmp_path: Path
) -> None:
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


def without_spacing(data: Any, number: int) -> None:
    data.PixelSpacing = [0, 0]


def without_directions(data: Any, number: int) -> None:
    data.ImageOrientationPatient = [0] * 6


def skewed(data: Any, number: int) -> None:
    data.ImageOrientationPatient = [1, 0, 0, 0.6, 0.8, 0]


def inverted(data: Any, number: int) -> None:
    data.PhotometricInterpretation = "MONOCHROME1"


def colored(data: Any, number: int) -> None:
    data.SamplesPerPixel, data.PhotometricInterpretation = 3, "RGB"


def without_columns(data: Any, number: int) -> None:
    del data.Columns


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
        (without_spacing, "got a slice without or with impossible ones"),
        (without_directions, "got a slice without or with impossible ones"),
        (skewed, "got a slice without or with impossible ones"),
        (inverted, r"expected gray levels \(MONOCHROME2\) in .*, got MONOCHROME1"),
        (colored, r"expected gray levels \(MONOCHROME2\) in .*, got RGB"),
        (without_columns, "got 6 that cannot be read"),
        (magnetic, r"expected one CT series in .*, got 1\.2\.3\.1 \(MR 'bone 1', 6 slices\)"),
    ],
)
def test_a_series_that_is_no_regular_ct_stack_is_refused(
    change: Callable[[Any, int], None], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        read_ct_series(write_series(tmp_path / "a", VOLUME, change))


def test_a_missing_slice_of_a_real_series_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"got 202\.500 mm after slice 1 of 4 where others have 1\.250 mm"
    ):
        read_ct_series(REAL / "77654033" / "CT2")


def in_order(folder: Path) -> list[Path]:
    """Files of a series, as the slices lie."""
    numbers = {path: pydicom.dcmread(path).InstanceNumber for path in folder.glob("*.dcm")}
    return sorted(numbers, key=lambda path: int(numbers[path]))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def header_alone(path: Path) -> None:
    data = pydicom.dcmread(path)
    del data.PixelData
    data.save_as(path)


def cut_in_the_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:500])


def with_words_for_numbers(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"1.5\\0.75", b"one\\half"))


def overwritten(path: Path) -> None:
    path.write_text("<html>404</html>")


@pytest.mark.parametrize("number", [0, 3, 5])
@pytest.mark.parametrize(
    "damage",
    [cut, emptied, header_alone, cut_in_the_header, with_words_for_numbers, overwritten],
    ids=lambda f: f.__name__,
)
def test_an_unreadable_slice_anywhere_is_named(
    damage: Callable[[Path], None], number: int, tmp_path: Path
) -> None:
    path = in_order(write_series(tmp_path / "a", VOLUME))[number]
    damage(path)
    assert has_ct_series(tmp_path / "a")
    with pytest.raises(ValueError, match=f"got 1 that cannot be read: {path.name}; .*copy them"):
        read_ct_series(tmp_path / "a")


def test_an_empty_slice_is_missed_whatever_its_name(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "a", VOLUME)
    for number, path in enumerate(in_order(folder)):
        path.rename(folder / f"1.2.840.{number}")
    (folder / "notes.txt").write_text("of the scan")
    (folder / ".hidden").touch()
    assert read_ct_series(folder).GetSize()[2] == 6
    emptied(folder / "1.2.840.5")
    with pytest.raises(ValueError, match=r"got 1 that cannot be read: 1\.2\.840\.5;"):
        read_ct_series(folder)


def unsigned(data: Any, pixels: np.ndarray) -> None:
    """Hounsfield units as they are, without values below zero."""
    data.PixelRepresentation = 0
    data.RescaleIntercept = 0
    data.PixelData = pixels.clip(0).astype("<u2").tobytes()


def without_rescaling(data: Any, pixels: np.ndarray) -> None:
    unsigned(data, pixels)
    del data.RescaleIntercept
    del data.RescaleSlope


@pytest.mark.parametrize("odd", [0, 2, 5])
@pytest.mark.parametrize("change", [unsigned, without_rescaling], ids=lambda f: f.__name__)
def test_each_slice_has_its_own_data_type(
    change: Callable[[Any, np.ndarray], None], odd: int, tmp_path: Path
) -> None:
    folder = write_series(
        tmp_path / "a", VOLUME, lambda data, n: change(data, VOLUME[n]) if n == odd else None
    )
    expected = VOLUME.copy()
    expected[odd] = expected[odd].clip(0)
    image = read_ct_series(folder)
    assert image.GetPixelID() == sitk.sitkInt16
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), expected)


def test_each_slice_has_its_own_rescaling(tmp_path: Path) -> None:
    slopes = (1, 0.5, 2, 0.3, 1.25, 1)
    intercepts = (-1024, -1000, 0, -1024.5, -1024, 0)

    def change(data: Any, number: int) -> None:
        data.RescaleSlope = slopes[number]
        data.RescaleIntercept = intercepts[number]

    image = read_ct_series(write_series(tmp_path / "a", VOLUME, change))
    stored = VOLUME.astype(np.float64) + 1024
    expected = stored * np.array(slopes)[:, None, None] + np.array(intercepts)[:, None, None]
    assert image.GetPixelID() == sitk.sitkFloat32
    np.testing.assert_allclose(sitk.GetArrayFromImage(image), expected, rtol=1e-6)


@pytest.mark.parametrize("decimals", [1, 2])
@pytest.mark.parametrize("distance_mm", [0.625, 1.25, 2.5])
def test_rounded_positions_are_a_straight_line(
    distance_mm: float, decimals: int, tmp_path: Path
) -> None:
    volume = np.tile(VOLUME, (4, 1, 1))
    direction = np.array([0.0, np.sin(0.3), np.cos(0.3)])

    def change(data: Any, number: int) -> None:
        data.ImageOrientationPatient = [1, 0, 0, 0, np.cos(0.3), -np.sin(0.3)]
        position = direction * distance_mm * number + (-20, -31, 12.5)
        data.ImagePositionPatient = [round(float(x), decimals) for x in position]

    folder = write_series(tmp_path / "a", volume, change)
    image = read_ct_series(folder)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), volume)
    last = image.TransformIndexToPhysicalPoint((0, 0, 23))
    np.testing.assert_allclose(last, direction * distance_mm * 23 + (-20, -31, 12.5), atol=0.15)
    in_order(folder)[9].unlink()
    with pytest.raises(ValueError, match=r"mm after slice 9 of 23 where others have"):
        read_ct_series(folder)


def test_a_slice_beside_the_others_is_refused(tmp_path: Path) -> None:
    def aside(data: Any, number: int) -> None:
        data.ImagePositionPatient[0] += 5 * (number > 2)

    with pytest.raises(ValueError, match=r"got 5\.590 mm after slice 3 of 6"):
        read_ct_series(write_series(tmp_path / "a", VOLUME, aside))


def report(data: Any, number: int) -> None:
    """A dose report: a picture of text of modality CT, without a position."""
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(data, tag)


def structured_report(data: Any, number: int) -> None:
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.67"
    for tag in ("Rows", "Columns", "PixelData", "ImagePositionPatient", "ImageOrientationPatient"):
        delattr(data, tag)


@pytest.mark.parametrize("change", [report, structured_report], ids=lambda f: f.__name__)
def test_a_report_beside_a_series_is_no_second_series(
    change: Callable[[Any, int], None], tmp_path: Path
) -> None:
    write_series(tmp_path / "a", VOLUME)
    write_series(tmp_path / "a" / "report", VOLUME[:2], change, uid="1.2.3.9")
    assert read_ct_series(tmp_path / "a").GetSize()[2] == 6
    assert not has_ct_series(tmp_path / "a" / "report")


def without_modality(data: Any, number: int) -> None:
    data.Modality = ""


def test_a_series_without_a_modality_is_ct_by_its_class_or_named(tmp_path: Path) -> None:
    write_series(tmp_path / "a", VOLUME, without_modality)
    assert read_ct_series(tmp_path / "a").GetSize()[2] == 6

    def of_no_class(data: Any, number: int) -> None:
        without_modality(data, number)
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"

    write_series(tmp_path / "b", VOLUME, of_no_class)
    assert has_ct_series(tmp_path / "b")
    with pytest.raises(
        ValueError, match=r"\(no modality 'bone 1', 6 slices\).*set the tag Modality"
    ):
        read_ct_series(tmp_path / "b")


def test_files_without_a_preamble_are_named(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ct" / "a", VOLUME)
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[132:])
    cases = TranslationCases(tmp_path / "ct", tmp_path / "mr")
    cases.check()
    pattern = r"got 6 that cannot be read: 000\.dcm, .*they lack the preamble and the letters DICM"
    assert re.search(pattern, cases.failures["a"])


def write_enhanced(folder: Path, order: list[int], slopes: tuple[float, ...] = (1,) * 6) -> Path:
    """The series as one multi-frame file, its frames in an order."""
    data = pydicom.dcmread(in_order(write_series(folder / "single", VOLUME))[0])
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = data.ImageOrientationPatient
    measures.PixelSpacing = data.PixelSpacing
    shared.PlaneOrientationSequence = [orientation]
    shared.PixelMeasuresSequence = [measures]
    frames = []
    for number in order:
        frame, position, rescaling = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [-20, -31, 12.5 + 2.5 * number]
        rescaling.RescaleSlope, rescaling.RescaleIntercept = slopes[number], -1024
        frame.PlanePositionSequence = [position]
        frame.PixelValueTransformationSequence = [rescaling]
        frames.append(frame)
    for tag in GROUP_OF:
        delattr(data, tag)
    data.NumberOfFrames = len(order)
    data.SharedFunctionalGroupsSequence = [shared]
    data.PerFrameFunctionalGroupsSequence = frames
    data.PixelData = (VOLUME[order] + 1024).astype("<i2").tobytes()
    (folder / "multi").mkdir()
    data.save_as(folder / "multi" / "a.dcm")
    return folder / "multi"


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [3, 0, 5, 1, 4, 2]])
def test_a_multi_frame_file_is_read_as_its_single_frames(order: list[int], tmp_path: Path) -> None:
    image = read_ct_series(write_enhanced(tmp_path, order))
    expected = read_ct_series(tmp_path / "single")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), VOLUME)
    for geometry in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(image, geometry)(), getattr(expected, geometry)())


def test_an_irregular_multi_frame_file_is_refused_with_a_tool(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"equal distances .* or convert it with dcm2niix"):
        read_ct_series(write_enhanced(tmp_path / "a", [0, 1, 2, 4, 5]))
    with pytest.raises(ValueError, match=r"6 positions and 2 rescalings; convert it with dcm2niix"):
        read_ct_series(write_enhanced(tmp_path / "b", [0, 1, 2, 3, 4, 5], (1, 1, 2, 1, 1, 1)))


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


def test_a_compressed_series_is_read(tmp_path: Path) -> None:
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
    images = [(item["case"], item["source"], item["image"]) for item in cases.items]
    assert images == [("anna", "anna", str(tmp_path / "mr" / "ct" / "anna.nii.gz"))]
    assert "gantry tilt" in cases.failures["bert"]
    alone = TranslationCases(ct / "anna", tmp_path / "alone")
    alone.check()
    assert [Path(item["image"]).name for item in alone.items] == ["anna.nii.gz"]


def test_a_pipe_among_the_slices_is_not_opened(tmp_path: Path) -> None:
    study = write_series(tmp_path / "study", VOLUME)
    os.mkfifo(study / "notes.txt")
    assert has_ct_series(study)
    assert read_ct_series(study).GetSize()[2] == len(VOLUME)
