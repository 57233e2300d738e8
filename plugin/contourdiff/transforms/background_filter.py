# SPDX-License-Identifier: Apache-2.0
"""Set what is not body to 0, slice by slice."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from monai.config import NdarrayOrTensor
from monai.transforms import Transform

from contourdiff.contours import background_filter
from contourdiff.transforms.keyed import KeyedTransform
from contourdiff.transforms.slicewise import slicewise


@dataclass(eq=False)
class BackgroundFilter(Transform):
    """Set what is not body to 0, slice by slice: see :func:`contourdiff.contours.foreground_mask`.

    Args:
        slice_axis: spatial axis along which slices are stacked, 0 for the first after the channel.
        classes: number of multi-Otsu classes.
        min_object_mm2: smaller objects are removed, in mm².
        max_hole_mm2: larger enclosed holes stay open, in mm².
    """

    slice_axis: int = 0
    classes: int = 2
    min_object_mm2: float = 9600.0
    max_hole_mm2: float = 3600.0

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """Filter ``img``: ``(C, H, W)`` or ``(C, H, W, D)`` gray levels in [0, 255] -> the same shape and type."""
        pixel_mm2 = _pixel_mm2(img, self.slice_axis)
        function = partial(
            background_filter,
            classes=self.classes,
            min_object_px=self.min_object_mm2 / pixel_mm2,
            max_hole_px=self.max_hole_mm2 / pixel_mm2,
        )
        return slicewise(img, self.slice_axis, function)


def _pixel_mm2(img: NdarrayOrTensor, slice_axis: int) -> float:
    """Area of one in-plane pixel from the image's spacing; 1 mm² where the image carries none."""
    pixdim = getattr(img, "pixdim", None)
    if pixdim is None:
        return 1.0
    in_plane = [float(size) for axis, size in enumerate(pixdim) if len(pixdim) == 2 or axis != slice_axis]
    return float(np.prod(in_plane))


class BackgroundFilterd(KeyedTransform):
    """Dictionary version of :class:`BackgroundFilter`, whose keyword arguments it takes."""

    array_class = BackgroundFilter
