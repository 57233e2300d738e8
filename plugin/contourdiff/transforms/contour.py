# SPDX-License-Identifier: Apache-2.0
"""Canny contour, slice by slice."""

from __future__ import annotations

import numpy as np
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import Transform

from contourdiff.contours import contour_of
from contourdiff.transforms.keyed import KeyedTransform
from contourdiff.transforms.slicewise import slicewise


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

        return slicewise(img, self.slice_axis, one)


class Contourd(KeyedTransform):
    """Dictionary version of :class:`Contour`; ``output_keys`` keeps the image beside its contour.

    Args:
        keys: images whose contour is wanted.
        output_keys: where the contours go; ``None`` replaces the images, as translation does.
        slice_axis: see :class:`Contour`, as the arguments below.
        sigma_px: see :class:`Contour`.
        low_threshold: see :class:`Contour`.
        high_threshold: see :class:`Contour`.
        allow_missing_keys: do not raise where a key is absent.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_keys: KeysCollection | None = None,
        slice_axis: int = 0,
        sigma_px: float = 0.8,
        low_threshold: float = 60.0,
        high_threshold: float = 112.0,
        allow_missing_keys: bool = False,
    ) -> None:
        contour = Contour(slice_axis, sigma_px, low_threshold, high_threshold)
        super().__init__(keys, contour, output_keys, allow_missing_keys)


ContourDict = Contourd
