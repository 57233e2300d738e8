# SPDX-License-Identifier: Apache-2.0
"""Clip a translation to gray levels."""

from __future__ import annotations

import torch
from monai.config import NdarrayOrTensor
from monai.transforms import Transform
from monai.utils import convert_to_dst_type, convert_to_numpy

from contourdiff.transforms.keyed import KeyedTransform


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


class GrayLevelsd(KeyedTransform):
    """Dictionary version of :class:`GrayLevels`, whose keyword arguments it takes."""

    array_class = GrayLevels
