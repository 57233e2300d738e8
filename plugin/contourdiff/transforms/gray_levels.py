# SPDX-License-Identifier: Apache-2.0
"""Clip a translation to gray levels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from monai.config import NdarrayOrTensor
from monai.transforms import Transform
from monai.utils import convert_to_dst_type, convert_to_numpy

from contourdiff.limits import check_choice
from contourdiff.transforms.keyed import KeyedTransform

MR_PERCENTILES = (1.0, 95.0)
"""Of a volume of real MR: they become gray levels 0 and 255, as in ``train.json``."""


@dataclass(eq=False)
class GrayLevels(Transform):
    """Clip to [0, 255] and, for ``dtype="uint8"`` instead of ``"float32"``, round: the last step before saving."""

    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_choice("dtype", self.dtype, ("float32", "uint8"))

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """Gray levels of any shape -> the same shape in ``dtype``."""
        data = convert_to_numpy(img).clip(0, 255)
        if self.dtype == "uint8":
            data.round(out=data)
        data = data.astype(self.dtype, copy=False)
        dtype = getattr(torch, self.dtype)
        return convert_to_dst_type(data, img, dtype=dtype)[0]


class GrayLevelsd(KeyedTransform):
    """Dictionary version of [`GrayLevels`][], whose keyword arguments it takes."""

    array_class = GrayLevels
