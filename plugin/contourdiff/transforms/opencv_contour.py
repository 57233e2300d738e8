# SPDX-License-Identifier: Apache-2.0
"""The paper's contour exactly: OpenCV's Canny, slice by slice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from monai.config import NdarrayOrTensor
from monai.transforms import Transform

from contourdiff.contours import check_thresholds, checked_slice
from contourdiff.extras import import_extra
from contourdiff.transforms.keyed import KeyedTransform
from contourdiff.transforms.slicewise import slicewise


@dataclass(eq=False)
class OpenCVContour(Transform):
    """Replace an image by the contour of the paper's code, slice by slice; requires OpenCV (``contourdiff[opencv]``).

    Gray levels are rounded to uint8, blurred with a Gaussian of ``kernel_px`` x ``kernel_px`` pixels, and passed to
    ``cv2.Canny`` with its 3 x 3 Sobel gradient and the sum of absolute derivatives as magnitude, see ``preprocess.py``
    in github.com/mazurowski-lab/ContourDiff. ``slice_axis`` is as for ``Contour``. Raises ``ImportError`` without it.
    """

    slice_axis: int = 0
    low_threshold: float = 80.0
    high_threshold: float = 150.0
    kernel_px: int = 3

    def __post_init__(self) -> None:
        self._cv2()
        check_thresholds(self.low_threshold, self.high_threshold)
        if self.kernel_px < 1 or self.kernel_px % 2 == 0:
            raise ValueError(f"kernel_px must be odd and positive, got {self.kernel_px}")

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """Contour of ``img``: ``(C, H, W)`` or ``(C, H, W, D)`` gray levels in [0, 255] -> float32 0/1, same shape."""
        return slicewise(img, self.slice_axis, self._contour)

    def _cv2(self) -> Any:
        return import_extra("cv2", "the paper's contour requires OpenCV", "opencv")

    def _contour(self, image: np.ndarray) -> np.ndarray:
        if min(image.shape) < 3:
            return np.zeros(image.shape, dtype=np.float32)
        cv2 = self._cv2()
        rounded = checked_slice(image).round()
        clipped = rounded.clip(0, 255)
        levels = np.ascontiguousarray(clipped, dtype=np.uint8)
        kernel = (self.kernel_px, self.kernel_px)
        blurred = cv2.GaussianBlur(levels, kernel, 0)
        edges = cv2.Canny(blurred, self.low_threshold, self.high_threshold)
        return (edges != 0).astype(np.float32)


class OpenCVContourd(KeyedTransform):
    """Dictionary version of [`OpenCVContour`][], whose keyword arguments it takes."""

    array_class = OpenCVContour
