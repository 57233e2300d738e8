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
    """Set what is not body to 0, slice by slice: see [`contourdiff.contours.foreground_mask`][].

    Slices are stacked along the spatial axis ``slice_axis``, 0 for the first after the channel. Objects smaller than
    ``min_object_mm2`` are removed, holes larger than ``max_hole_mm2`` stay open, both in mm².
    """

    slice_axis: int = 0
    classes: int = 2
    min_object_mm2: float = 9600.0
    max_hole_mm2: float = 3600.0

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """Filter ``img``: ``(C, H, W)`` or ``(C, H, W, D)`` gray levels in [0, 255] -> the same shape and type."""
        spacing = getattr(img, "pixdim", ())  # without it a pixel is 1 mm²
        in_plane = np.asarray(spacing, dtype=np.float64)
        if len(in_plane) == 3:
            in_plane = np.delete(in_plane, self.slice_axis)
        pixel_mm2 = float(np.prod(in_plane))
        function = partial(
            background_filter,
            classes=self.classes,
            min_object_px=self.min_object_mm2 / pixel_mm2,
            max_hole_px=self.max_hole_mm2 / pixel_mm2,
        )
        return slicewise(img, self.slice_axis, function)


class BackgroundFilterd(KeyedTransform):
    """Dictionary version of [`BackgroundFilter`][], whose keyword arguments it takes."""

    array_class = BackgroundFilter
