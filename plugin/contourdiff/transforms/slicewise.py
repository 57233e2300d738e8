# SPDX-License-Identifier: Apache-2.0
"""Apply a transform slice by slice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.config import NdarrayOrTensor
from monai.transforms import Transform
from monai.utils import convert_to_dst_type, convert_to_numpy

from contourdiff.limits import check_whole
from contourdiff.transforms.keyed import KeyedTransform


@dataclass(eq=False)
class Slicewise(Transform):
    """Apply another transform of slices ``(H, W)`` slice by slice, so that its temporary memory is that of one slice.

    Slices are stacked along the spatial axis ``slice_axis``, 0 for the first after the channel.
    """

    transform: Callable[[Any], Any]
    slice_axis: int = 0

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """Transform ``img``, ``(C, H, W)`` or ``(C, H, W, D)`` -> the same shape, float32."""
        return slicewise(img, self.slice_axis, self.transform)


def slicewise(
    img: NdarrayOrTensor, slice_axis: int, function: Callable[[np.ndarray], np.ndarray]
) -> NdarrayOrTensor:
    """Apply ``function`` to every slice ``(H, W)`` of ``img``, ``(C, H, W)`` or ``(C, H, W, D)``: same shape, float32.

    Raises ``ValueError`` for another shape or ``slice_axis``.
    """
    data = convert_to_numpy(img)
    if data.ndim == 3:
        data = data[:, None]
        slice_axis = 0
    elif data.ndim != 4:
        hint = "add EnsureChannelFirstd to preprocessing"
        raise ValueError(f"expected (C, H, W) or (C, H, W, D), got shape {data.shape}; {hint}")
    check_whole("slice_axis", slice_axis, 0, 2)
    out = np.empty(data.shape, dtype=np.float32)
    target = np.moveaxis(out, slice_axis + 1, 1)
    source = np.moveaxis(data, slice_axis + 1, 1)
    for index in np.ndindex(*source.shape[:2]):
        target[index] = function(source[index])
    out = out.reshape(img.shape)
    return convert_to_dst_type(out, img, dtype=torch.float32)[0]


class Slicewised(KeyedTransform):
    """Dictionary version of [`Slicewise`][], whose keyword arguments it takes."""

    array_class = Slicewise
