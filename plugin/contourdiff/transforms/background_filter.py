# SPDX-License-Identifier: Apache-2.0
"""Background filter, slice by slice."""

from __future__ import annotations

import numpy as np
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import Transform

from contourdiff.contours import background_filter
from contourdiff.transforms.keyed import KeyedTransform
from contourdiff.transforms.slicewise import slicewise


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

        return slicewise(img, self.slice_axis, one)


def _pixel_mm2(img: NdarrayOrTensor, slice_axis: int) -> float:
    """Area of one in-plane pixel from the image's spacing; 1 mm² where the image carries none."""
    pixdim = getattr(img, "pixdim", None)
    if pixdim is None:
        return 1.0
    in_plane = [float(size) for axis, size in enumerate(pixdim) if len(pixdim) == 2 or axis != slice_axis]
    return float(np.prod(in_plane))


class BackgroundFilterd(KeyedTransform):
    """Dictionary version of :class:`BackgroundFilter`."""

    def __init__(
        self,
        keys: KeysCollection,
        slice_axis: int = 0,
        classes: int = 2,
        min_object_mm2: float = 9600.0,
        max_hole_mm2: float = 3600.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(
            keys,
            BackgroundFilter(slice_axis, classes, min_object_mm2, max_hole_mm2),
            allow_missing_keys=allow_missing_keys,
        )


BackgroundFilterDict = BackgroundFilterd
