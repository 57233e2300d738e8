# SPDX-License-Identifier: Apache-2.0
"""Gaussian smoothing before an in-plane resampling."""

from __future__ import annotations

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.utils import convert_to_dst_type, convert_to_numpy
from scipy.ndimage import gaussian_filter

from contourdiff.transforms.keyed import KeyedTransform


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


class InPlaneSmoothd(KeyedTransform):
    """Dictionary version of :class:`InPlaneSmooth`."""

    def __init__(
        self, keys: KeysCollection, spacing_mm: float, slice_axis: int = 0, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, InPlaneSmooth(spacing_mm, slice_axis), allow_missing_keys=allow_missing_keys)


InPlaneSmoothDict = InPlaneSmoothd
