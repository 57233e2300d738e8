# SPDX-License-Identifier: Apache-2.0
"""Array transforms: the background filter and the contour, slice by slice through a volume."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from monai.config import NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.utils import convert_to_dst_type, convert_to_numpy
from scipy.ndimage import gaussian_filter

from contourdiff.contours import background_filter, contour_of


class InPlaneSmooth(Transform):
    """Gaussian smoothing of each slice that a resampling to ``spacing_mm`` needs, so that fine texture does not alias.

    The standard deviation is ``(spacing_mm / own spacing - 1) / 2`` pixels along each in-plane axis, as in
    ``skimage.transform.resize``, and 0 where the image is not finer than ``spacing_mm``.

    Args:
        spacing_mm: in-plane spacing that the image is going to be resampled to.
        slice_axis: spatial axis along which slices are stacked; it is not smoothed.
    """

    def __init__(self, spacing_mm: float, slice_axis: int = 0) -> None:
        self.spacing_mm = spacing_mm
        self.slice_axis = slice_axis

    def __call__(self, img: MetaTensor) -> MetaTensor:
        """Smooth ``img (C, H, W, D)``, which must carry its spacing; same shape, float32."""
        if not isinstance(img, MetaTensor) or img.ndim != 4:
            raise ValueError(f"expected a MetaTensor (C, H, W, D), got {type(img).__name__} of {tuple(img.shape)}")
        sigmas = [max(self.spacing_mm / float(size) - 1, 0) / 2 for size in img.pixdim]
        sigmas[self.slice_axis] = 0.0
        data = convert_to_numpy(img).astype(np.float32)
        if any(sigmas):
            for channel in data:
                gaussian_filter(channel, sigmas, output=channel, mode="nearest")
        return convert_to_dst_type(data, img, dtype=torch.float32)[0]


class Slicewise(Transform):
    """Another transform, slice by slice, so that only a slice at a time takes the memory of its steps.

    Args:
        transform: takes and returns a slice ``(H, W)`` of the same shape, such as MONAI's ``ScaleIntensityRange``.
        slice_axis: spatial axis along which slices are stacked, 0 for the first after the channel.
    """

    def __init__(self, transform: Callable[[Any], Any], slice_axis: int = 0) -> None:
        self.transform = transform
        self.slice_axis = slice_axis

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """Transform ``img``, ``(C, H, W)`` or ``(C, H, W, D)`` -> the same shape, float32."""
        return _slicewise(img, self.slice_axis, self.transform)


class BackgroundFilter(Transform):
    """Set what is not body to 0, slice by slice: see :func:`contourdiff.contours.foreground_mask`.

    Args:
        slice_axis: spatial axis along which slices are stacked, 0 for the first after the channel.
        classes: number of multi-Otsu classes.
        min_object_mm2: smaller objects are removed; in mm², so that it holds for any in-plane spacing.
        max_hole_mm2: enclosed holes up to this area are filled, in mm².
    """

    def __init__(
        self, slice_axis: int = 0, classes: int = 2, min_object_mm2: float = 9600.0, max_hole_mm2: float = 3600.0
    ) -> None:
        self.slice_axis = slice_axis
        self.classes = classes
        self.min_object_mm2 = min_object_mm2
        self.max_hole_mm2 = max_hole_mm2

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """Filter ``img``: ``(C, H, W)`` or ``(C, H, W, D)`` gray levels in [0, 255] -> the same shape and type."""
        pixel_mm2 = _pixel_mm2(img, self.slice_axis)

        def one(image: np.ndarray) -> np.ndarray:
            return background_filter(
                image,
                classes=self.classes,
                min_object_px=self.min_object_mm2 / pixel_mm2,
                max_hole_px=self.max_hole_mm2 / pixel_mm2,
            )

        return _slicewise(img, self.slice_axis, one)


class Contour(Transform):
    """Replace an image by its Canny contour, slice by slice: see :func:`contourdiff.contours.contour_of`.

    Args:
        slice_axis: spatial axis along which slices are stacked, 0 for the first after the channel.
        sigma_px: smoothing before the gradient, in pixels.
        low_threshold: gradient magnitude in gray levels from which a contour may continue.
        high_threshold: gradient magnitude in gray levels from which a contour may start.
    """

    def __init__(
        self, slice_axis: int = 0, sigma_px: float = 0.8, low_threshold: float = 60.0, high_threshold: float = 112.0
    ) -> None:
        self.slice_axis = slice_axis
        self.sigma_px = sigma_px
        self.low_threshold = low_threshold
        self.high_threshold = high_threshold

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """Contour of ``img``: ``(C, H, W)`` or ``(C, H, W, D)`` gray levels in [0, 255] -> float32 0/1, same shape."""

        def one(image: np.ndarray) -> np.ndarray:
            return contour_of(
                image, sigma_px=self.sigma_px, low_threshold=self.low_threshold, high_threshold=self.high_threshold
            )

        return _slicewise(img, self.slice_axis, one)


class GrayLevels(Transform):
    """Clip to [0, 255] and, for an integer ``dtype``, round: the last step before a translation is saved.

    Args:
        dtype: ``"float32"`` or ``"uint8"``.
    """

    def __init__(self, dtype: str = "float32") -> None:
        if dtype not in ("float32", "uint8"):
            raise ValueError(f"dtype must be 'float32' or 'uint8', got {dtype!r}")
        self.dtype = dtype

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """Gray levels of any shape -> the same shape in ``dtype``."""
        data = convert_to_numpy(img).clip(0, 255)
        if self.dtype == "uint8":
            data.round(out=data)
        data = data.astype(self.dtype, copy=False)
        return convert_to_dst_type(data, img, dtype=getattr(torch, self.dtype))[0]


def _slicewise(img: NdarrayOrTensor, slice_axis: int, function: Callable[[np.ndarray], np.ndarray]) -> NdarrayOrTensor:
    data = convert_to_numpy(img)
    if data.ndim == 3:
        data, slice_axis = data[:, None], 0
    elif data.ndim != 4:
        raise ValueError(
            f"expected (C, H, W) or (C, H, W, D), got shape {data.shape}; add EnsureChannelFirstd to preprocessing"
        )
    if not 0 <= slice_axis <= 2:
        raise ValueError(f"slice_axis must be 0, 1 or 2, got {slice_axis}")
    out = np.empty(data.shape, dtype=np.float32)
    target, source = np.moveaxis(out, slice_axis + 1, 1), np.moveaxis(data, slice_axis + 1, 1)
    for channel in range(source.shape[0]):
        for index in range(source.shape[1]):
            target[channel, index] = function(source[channel, index])
    return convert_to_dst_type(out.reshape(img.shape), img, dtype=torch.float32)[0]


def _pixel_mm2(img: NdarrayOrTensor, slice_axis: int) -> float:
    """Area of one in-plane pixel from the image's spacing; 1 mm² where the image carries none."""
    pixdim = getattr(img, "pixdim", None)
    if pixdim is None:
        return 1.0
    in_plane = [float(size) for axis, size in enumerate(pixdim) if len(pixdim) == 2 or axis != slice_axis]
    return float(np.prod(in_plane))
