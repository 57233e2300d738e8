# SPDX-License-Identifier: Apache-2.0
"""The same image in any format, data type and number of axes is the same case, on the same grid."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import MetaTensor

import contourdiff
from contourdiff import translation
from contourdiff.data.itk_files import simpleitk_of, write_itk
from contourdiff.data.translation_cases import TranslationCases
from contourdiff.data.volumes import open_volume, scaled_voxels
from helpers.networks import TINY_NETWORK
from helpers.runs import QUICK_SETTINGS, run_tiny_inference
from helpers.volumes import OBLIQUE, ball_ct, nibabel_of, read_voxels, write_nifti

CT = ball_ct((10, 30, 26))
LABEL = (CT > 200).astype(np.uint8) * 30
SHEARED = np.array([[3, 0, 0, -20], [0, 3, 0.9, 10], [0, 0, 3, 5], [0, 0, 0, 1.0]])
SHORT: dict[str, Any] = {"num_inference_steps": 1, "candidates": 1, "max_rounds": 1}


def write_sheared(folder: Path, suffix: str) -> Path:
    """A CT and its label with slices that are shifted against one another, 22 mm over 50 slices."""
    for path, data in ((folder / f"a{suffix}", CT), (folder / "labels" / f"a{suffix}", LABEL)):
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".nii.gz":
            image = nib.Nifti1Image(data, SHEARED)
            image.set_sform(SHEARED, 2)
            nib.save(image, path)
        else:
            write_itk(data, SHEARED, path)
    return folder


@pytest.fixture(scope="module")
def sheared_mr(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Path) -> np.ndarray:
    """The MR of the sheared NIfTI."""
    folder = tmp_path_factory.mktemp("sheared")
    output = run_tiny_inference(
        write_sheared(folder / "ct", ".nii.gz"), folder / "mr", tiny_weights, **SHORT
    )
    return read_voxels(output / "a_mr.nii.gz")


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "output_ext"), [(".nrrd", ".mha"), (".mha", ".nrrd")])
def test_sheared_axes_of_a_file_stay_sheared(
    suffix: str, output_ext: str, sheared_mr: np.ndarray, tiny_weights: Path, tmp_path: Path
) -> None:
    source = write_sheared(tmp_path / "ct", suffix)
    output = run_tiny_inference(
        source, tmp_path / "mr", tiny_weights, output_ext=output_ext, **SHORT
    )
    for end, expected, tolerance in (("mr", sheared_mr, 0.01), ("label", LABEL, 0)):
        image = nibabel_of(sitk.ReadImage(str(output / f"a_{end}{output_ext}")))
        np.testing.assert_allclose(image.affine, SHEARED, atol=1e-4)
        np.testing.assert_allclose(np.asarray(image.dataobj), expected, atol=tolerance)
    converted = nib.load(output / "ct" / "a.nii.gz")
    np.testing.assert_allclose(converted.affine, SHEARED, atol=1e-5)
    assert int(converted.header["qform_code"]) == 0  # which cannot hold a shear


@pytest.mark.slow
@pytest.mark.parametrize("package", [sitk, itk], ids=lambda package: package.__name__)
def test_sheared_axes_in_memory_stay_sheared(
    package: Any, sheared_mr: np.ndarray, tiny_weights: Path, tmp_path: Path
) -> None:
    image = simpleitk_of(CT, SHEARED)
    if package is itk:
        write_itk(CT, SHEARED, tmp_path / "a.mha")
        image = itk.imread(str(tmp_path / "a.mha"))
    settings = {**SHORT, "overlays": ("single",), "network_def": TINY_NETWORK, "device": "cpu"}
    settings |= {
        "weights": tiny_weights,
        "min_object_mm2": 100.0,
        "batch_size": 4,
        **QUICK_SETTINGS,
    }
    mr = contourdiff.translate(image, case="a", **settings)
    array = itk.array_from_image(mr) if package is itk else sitk.GetArrayFromImage(mr)
    np.testing.assert_allclose(array.T, sheared_mr, atol=0.01)
    for geometry in ("GetOrigin", "GetSpacing", "GetDirection"):
        expected = np.asarray(getattr(image, geometry)())
        np.testing.assert_array_equal(np.asarray(getattr(mr, geometry)()), expected)


class RecordedError(Exception):
    """Ends a translation when its input is written."""


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[np.ndarray, np.ndarray]]]:
    """What a translation gets of images in memory: voxels and affine of CT and label."""
    files: list[tuple[np.ndarray, np.ndarray]] = []

    def record(source: Path, output: Path, label: Path | None = None, **settings: Any) -> None:
        for path in filter(None, (source, label)):
            files.append((np.array(scaled_voxels(path)), open_volume(path).affine))
        raise RecordedError

    def call(*images: Any) -> list[tuple[np.ndarray, np.ndarray]]:
        files.clear()
        with pytest.raises(RecordedError):
            contourdiff.translate(*images)
        return list(files)

    monkeypatch.setattr(translation, "translate_path", record)
    return call


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [
        (bool, np.uint8),
        (np.int8, np.int8),
        (np.uint16, np.uint16),
        (np.int64, np.int64),
        (np.uint64, np.uint64),
        (np.float16, np.float32),
        (np.float64, np.float64),
        (np.longdouble, np.float64),
    ],
)
def test_every_data_type_of_numpy_is_kept_or_widened(
    dtype: Any, kept: Any, written: Callable[..., Any]
) -> None:
    values = (LABEL > 0).astype(dtype)
    ct = nib.Nifti1Image(CT.astype(np.int64), OBLIQUE, dtype=np.int64)
    for label in (
        nib.spatialimages.SpatialImage(values, OBLIQUE),
        nib.MGHImage(values.astype(np.uint8), OBLIQUE),
    ):
        image, result = written(ct, label)
        np.testing.assert_array_equal(image[0], CT)
        assert image[0].dtype == np.int64
        np.testing.assert_array_equal(result[0], LABEL > 0)
        np.testing.assert_allclose(result[1], OBLIQUE, atol=1e-5)
        assert result[0].dtype == (kept if type(label) is not nib.MGHImage else np.uint8)


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [
        (torch.bool, np.uint8),
        (torch.int64, np.int64),
        (torch.uint16, np.uint16),
        (torch.float16, np.float32),
        (torch.bfloat16, np.float32),
        (torch.float64, np.float64),
    ],
    ids=str,
)
@pytest.mark.parametrize("with_channel", [True, False])
def test_every_data_type_of_torch_is_kept_or_widened(
    with_channel: bool, dtype: torch.dtype, kept: Any, written: Callable[..., Any]
) -> None:
    values = torch.as_tensor(LABEL > 0).to(dtype)
    if with_channel:
        values = values[None]
    tensor = MetaTensor(values, affine=torch.as_tensor(OBLIQUE))
    if dtype.is_floating_point:
        tensor.requires_grad_()
    image, label = written(tensor, tensor)
    for result in (image, label):
        np.testing.assert_array_equal(result[0], LABEL > 0)
        np.testing.assert_allclose(result[1], OBLIQUE, atol=1e-5)
        assert result[0].dtype == kept


def test_large_numbers_of_a_label_stay(written: Callable[..., Any]) -> None:
    labels = LABEL.astype(np.int64) * 2**40
    images = (
        nib.Nifti1Image(labels, OBLIQUE, dtype=np.int64),
        MetaTensor(torch.as_tensor(labels), affine=torch.as_tensor(OBLIQUE)),
        simpleitk_of(labels, OBLIQUE),
    )
    for image in images:
        np.testing.assert_array_equal(written(image)[0][0], labels)


@pytest.mark.parametrize("data", [CT.astype(np.complex64), np.full(CT.shape, "a"), CT[0]])
def test_what_is_no_volume_of_numbers_is_refused(data: np.ndarray, tmp_path: Path) -> None:
    class Image(nib.spatialimages.SpatialImage):
        def __init__(self) -> None:
            self._dataobj = data
            self._affine = OBLIQUE

    with pytest.raises(ValueError, match=r"expected (one number a voxel|a volume)"):
        contourdiff.translate(Image(), output=tmp_path / "mr")


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_an_impossible_affine_in_memory_is_refused(value: float, tmp_path: Path) -> None:
    tensor = MetaTensor(
        torch.as_tensor(CT), affine=torch.diag(torch.tensor([2.0, 2.0, value, 1.0]))
    )
    with pytest.raises(ValueError, match="expected an invertible affine, got"):
        contourdiff.translate(tensor, output=tmp_path / "mr")


def test_several_channels_in_memory_are_refused() -> None:
    for image in (
        sitk.Image([4, 5, 6], sitk.sitkVectorUInt8, 3),
        sitk.Image([4, 5], sitk.sitkInt16),
    ):
        with pytest.raises(ValueError, match="of one channel at the image in memory, got"):
            contourdiff.translate(image)


def checked(folder: Path) -> TranslationCases:
    logging.disable(logging.ERROR)
    cases = TranslationCases(folder, folder.parent / "mr")
    cases.check()
    logging.disable(logging.NOTSET)
    return cases


def test_a_single_frame_of_four_dimensions_is_a_volume(
    written: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "ct"
    ways: dict[str, tuple[Any, ...]] = {"one": (1,), "twice": (1, 1), "two": (2,)}
    for name, shape in ways.items():
        data = np.broadcast_to(CT.reshape(*CT.shape, *[1] * len(shape)), (*CT.shape, *shape))
        write_nifti(folder / f"{name}.nii.gz", data, OBLIQUE)
        write_nifti(folder / "labels" / f"{name}.nii.gz", data, OBLIQUE)
    frame = simpleitk_of(CT, OBLIQUE)
    for count in (1, 2):
        sitk.WriteImage(sitk.JoinSeries([frame] * count), str(folder / f"itk{count}.mha"))
    cases = checked(folder)
    assert sorted(item["name"] for item in cases.items) == ["itk1", "one", "twice"]
    for item in cases.items:
        np.testing.assert_array_equal(scaled_voxels(item["image"]), CT)
        np.testing.assert_allclose(open_volume(item["image"]).affine, OBLIQUE, atol=1e-4)
    assert "got shape (10, 30, 26, 2)" in cases.failures["two"]
    assert "got 4 dimensions" in cases.failures["itk2"]
    for image in (sitk.JoinSeries([frame]), nib.Nifti1Image(CT[..., None], OBLIQUE)):
        np.testing.assert_array_equal(written(image)[0][0], CT)


@pytest.mark.slow
@pytest.mark.parametrize("rounded", [0.708, 0.7075, 0.71])
def test_a_rounded_quaternion_is_normalized(
    rounded: float, tiny_weights: Path, tmp_path: Path
) -> None:
    turn = np.array([[-1, 0, 0], [0, 0, 1], [0, 1, 0]])  # by 180 degrees
    affine = np.eye(4)
    affine[:3, :3] = turn * (3.0, 2.5, 4.0)
    path = write_nifti(tmp_path / "ct" / "a.nii", CT, affine)
    raw = bytearray(path.read_bytes())
    header = np.frombuffer(raw, dtype=nib.Nifti1Header.template_dtype, count=1)
    assert header["sform_code"]
    for field, value in (("sform_code", 0), ("quatern_c", rounded), ("quatern_d", rounded)):
        header[field] = value
    path.write_bytes(bytes(raw))
    with pytest.raises(ValueError, match="w2 should be positive"):
        nib.load(path)
    output = run_tiny_inference(tmp_path / "ct", tmp_path / "mr", tiny_weights, **SHORT)
    image = nib.load(output / "a_mr.nii.gz")
    np.testing.assert_allclose(image.affine, affine, atol=1e-5)
    np.testing.assert_allclose(image.get_qform(), affine, atol=1e-5)
