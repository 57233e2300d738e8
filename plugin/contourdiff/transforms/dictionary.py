# SPDX-License-Identifier: Apache-2.0
"""Dictionary versions of :mod:`contourdiff.transforms.array`."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import ensure_tuple

from contourdiff.transforms.array import BackgroundFilter, Contour, GrayLevels, InPlaneSmooth, Slicewise


class KeyedTransform(MapTransform):
    """An array transform, applied to the item of every key.

    Args:
        keys: items to transform.
        transform: the array transform.
        output_keys: where the results go, one for each key; ``None`` replaces the items.
        allow_missing_keys: do not raise where a key is absent.
    """

    def __init__(
        self,
        keys: KeysCollection,
        transform: Callable[[Any], Any],
        output_keys: KeysCollection | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.output_keys = self.keys if output_keys is None else ensure_tuple(output_keys)
        if len(self.output_keys) != len(self.keys):
            raise ValueError(f"expected one output key for each of {self.keys}, got {self.output_keys}")
        self.transform = transform

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Put the transformed item of every key of ``data`` under its output key."""
        out = dict(data)
        for key, output_key in self.key_iterator(out, self.output_keys):
            out[output_key] = self.transform(out[key])
        return out


class InPlaneSmoothd(KeyedTransform):
    """Dictionary version of :class:`InPlaneSmooth`."""

    def __init__(
        self, keys: KeysCollection, spacing_mm: float, slice_axis: int = 0, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, InPlaneSmooth(spacing_mm, slice_axis), allow_missing_keys=allow_missing_keys)


class Slicewised(KeyedTransform):
    """Dictionary version of :class:`Slicewise`."""

    def __init__(
        self,
        keys: KeysCollection,
        transform: Callable[[Any], Any],
        slice_axis: int = 0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, Slicewise(transform, slice_axis), allow_missing_keys=allow_missing_keys)


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


class GrayLevelsd(KeyedTransform):
    """Dictionary version of :class:`GrayLevels`."""

    def __init__(self, keys: KeysCollection, dtype: str = "float32", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, GrayLevels(dtype), allow_missing_keys=allow_missing_keys)


BackgroundFilterDict = BackgroundFilterd
ContourDict = Contourd
GrayLevelsDict = GrayLevelsd
InPlaneSmoothDict = InPlaneSmoothd
SlicewiseDict = Slicewised
