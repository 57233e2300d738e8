# SPDX-License-Identifier: Apache-2.0
"""Laws of the paper's contour: OpenCV's, slice by slice, near that of scikit-image, or a clear error."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from contourdiff.contours import contour_of
from contourdiff.phantom import lumbar_phantom
from contourdiff.transforms import OpenCVContour, OpenCVContourd
from contourdiff_lab.metrics.contour_agreement import contour_agreement


@pytest.fixture
def cv2() -> Any:
    return pytest.importorskip("cv2", reason="OpenCV is not installed")


@pytest.fixture(scope="module")
def levels() -> np.ndarray:
    """Gray levels of three sagittal slices of the phantom, ``(3, H, W)``, not rounded."""
    ct = np.asarray(lumbar_phantom()[0], dtype=np.float64)
    middle = ct.shape[0] // 2
    return np.clip((ct[middle - 1 : middle + 2] + 200) / 500, 0, 1) * 255


def test_the_opencv_contour_is_that_of_the_papers_code(cv2: Any, levels: np.ndarray) -> None:
    rounded = np.rint(levels).astype(np.uint8)
    expected = np.stack(
        [cv2.Canny(cv2.GaussianBlur(image, (3, 3), 0), 80, 150) > 50 for image in rounded]
    )
    assert 0.001 < expected.mean() < 0.2
    for axis in range(3):
        image = np.moveaxis(levels, 0, axis)[None]
        contour = OpenCVContour(slice_axis=axis)(MetaTensor(torch.from_numpy(image)))
        assert isinstance(contour, MetaTensor)
        assert contour.dtype == torch.float32
        np.testing.assert_array_equal(np.moveaxis(np.asarray(contour[0]), axis, 0), expected)
    data = OpenCVContourd("image", output_keys="contour", slice_axis=0)({"image": levels[None]})
    np.testing.assert_array_equal(data["contour"][0], expected)
    np.testing.assert_array_equal(data["image"][0], levels)


def test_the_opencv_contour_is_near_that_of_scikit_image(cv2: Any, levels: np.ndarray) -> None:
    for image in levels:
        ours, papers = contour_of(image), OpenCVContour()(image[None])[0]
        assert contour_agreement(ours, papers, tolerance_px=1.0).f1 > 0.9


def test_empty_and_tiny_slices_have_no_opencv_contour(cv2: Any) -> None:
    for shape in ((1, 8, 8), (1, 1, 1), (1, 2, 9, 3)):
        assert not OpenCVContour()(np.full(shape, 90.0)).any()
    with pytest.raises(ValueError, match="expected finite gray levels"):
        OpenCVContour()(np.full((1, 4, 4), np.nan))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"low_threshold": 160}, "low_threshold <= high_threshold, got 160"),
        ({"kernel_px": 2}, "must be odd"),
    ],
)
def test_impossible_settings_of_the_opencv_contour_are_refused(
    cv2: Any, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        OpenCVContour(**given)


def test_missing_opencv_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r"requires OpenCV; pip install 'contourdiff\[opencv\]'"):
        OpenCVContour()
