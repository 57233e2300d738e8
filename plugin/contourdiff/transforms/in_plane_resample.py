# SPDX-License-Identifier: Apache-2.0
"""Resample slices to an in-plane spacing, smoothed first so that fine texture does not alias."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Spacingd, Transform
from monai.utils import convert_to_dst_type, convert_to_numpy
from scipy.ndimage import gaussian_filter
from torch import Tensor

from contourdiff.limits import check_whole
from contourdiff.transforms.chunked_resample import ChunkedResample


@dataclass(eq=False)
class InPlaneSmooth(Transform):
    """Gaussian smoothing of each slice before it is resampled to ``spacing_mm``, against aliasing.

    The standard deviation is ``(spacing_mm / own spacing - 1) / 2`` pixels along each in-plane axis, as in
    ``skimage.transform.resize``, and 0 where the image is not finer than ``spacing_mm`` and along ``slice_axis``.
    """

    spacing_mm: float
    slice_axis: int = 0

    def __call__(self, img: Tensor) -> MetaTensor:
        """Smooth ``img``, a MetaTensor ``(C, H, W, D)``; same shape, float32."""
        if not isinstance(img, MetaTensor) or img.ndim != 4:
            raise ValueError(
                f"expected a MetaTensor (C, H, W, D), got {type(img).__name__} of {tuple(img.shape)}"
            )
        spacing_mm = np.asarray(img.pixdim, dtype=np.float64)
        ratios = self.spacing_mm / spacing_mm
        excess = np.maximum(ratios - 1, 0)
        sigmas = excess / 2
        sigmas[self.slice_axis] = 0.0
        data = convert_to_numpy(img).astype(np.float32)
        if sigmas.any():
            for channel in data:
                gaussian_filter(channel, sigmas, output=channel, mode="nearest")
        return convert_to_dst_type(data, img, dtype=torch.float32)[0]


class InPlaneResampled(Spacingd):
    """Resample each slice to ``spacing_mm``; the slice axis keeps its spacing. Invertible.

    Volumes are MetaTensors ``(C, H, W, D)``; ``mode`` is ``"bilinear"`` or ``"nearest"``, one for all keys or one for
    each. Images are smoothed with [`InPlaneSmooth`][] first, labels (``"nearest"``) are not. The result is float32.
    The inverse does not undo the smoothing. ``options`` are those of MONAI's ``Spacingd``.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spacing_mm: float,
        slice_axis: int = 0,
        mode: str | Sequence[str] = "bilinear",
        **options: Any,
    ) -> None:
        check_whole("slice_axis", slice_axis, 0, 2)
        pixdim = [float(spacing_mm)] * 3
        pixdim[slice_axis] = -1.0
        options.setdefault("padding_mode", "border")
        super().__init__(keys, pixdim, mode=mode, **options)
        self.spacing_transform.sp_resample = ChunkedResample()
        self.smooth = InPlaneSmooth(spacing_mm, slice_axis)

    def __call__(
        self, data: Mapping[Hashable, Tensor], lazy: bool | None = None
    ) -> dict[Hashable, Tensor]:
        """Smooth and resample the volume of every key."""
        smoothed = dict(data)
        for key, mode in self.key_iterator(smoothed, self.mode):
            if mode != "nearest":
                smoothed[key] = self.smooth(smoothed[key])
        return super().__call__(smoothed, lazy)
