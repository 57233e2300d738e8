# SPDX-License-Identifier: Apache-2.0
"""Canny contour, slice by slice."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from monai.config import NdarrayOrTensor
from monai.transforms import Transform

from contourdiff.contours import contour_of
from contourdiff.transforms.keyed import KeyedTransform
from contourdiff.transforms.slicewise import slicewise


@dataclass(eq=False)
class Contour(Transform):
    """Replace an image by its Canny contour, slice by slice: see [`contourdiff.contours.contour_of`][].

    Slices are stacked along the spatial axis ``slice_axis``, 0 for the first after the channel.
    """

    slice_axis: int = 0
    sigma_px: float = 0.8
    low_threshold: float = 60.0
    high_threshold: float = 112.0

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """Contour of ``img``: ``(C, H, W)`` or ``(C, H, W, D)`` gray levels in [0, 255] -> float32 0/1, same shape."""
        function = partial(
            contour_of,
            sigma_px=self.sigma_px,
            low_threshold=self.low_threshold,
            high_threshold=self.high_threshold,
        )
        return slicewise(img, self.slice_axis, function)


class Contourd(KeyedTransform):
    """Dictionary version of [`Contour`][], whose keyword arguments it takes.

    ``output_keys`` keeps the image beside its contour; without it the contour replaces the image.
    """

    array_class = Contour
