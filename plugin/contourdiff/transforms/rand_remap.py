# SPDX-License-Identifier: Apache-2.0
"""Random contrast: gray levels of a slice mapped by a random curve, so that no order of tissues can be learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.config import NdarrayOrTensor
from monai.transforms import RandomizableTransform
from monai.utils import convert_to_dst_type, convert_to_numpy

from contourdiff.transforms.keyed import RandomKeyedTransform


def blend_with_curve(
    image: np.ndarray, levels: np.ndarray, share: float, *, top: float, air: float = 0.0
) -> np.ndarray:
    """Blend ``image`` with itself, mapped by the curve through ``levels``, evenly spaced over [0, ``top``].

    ``share`` is the weight of the mapped image. Values up to ``air`` stay as they are.
    """
    knots = np.linspace(0, top, len(levels))
    mapped = np.interp(image, knots, levels)
    blend = (1 - share) * image + share * mapped
    return np.where(image > air, blend, image)


@dataclass(eq=False)
class RandRemap(RandomizableTransform):
    """Blend an image with itself, mapped by a piecewise linear curve through random levels; air stays 0.

    Unlike MONAI's ``RandHistogramShift`` the curve need not be monotonic: bone may become darker than the disc, as in
    domain randomization (SynthSeg, Billot et al., Medical Image Analysis 86, 2023).
    ``share`` is the range of the weight of the mapped image; the ``knots`` random levels are evenly spaced over [0, 1];
    levels up to ``air`` stay as they are.
    """

    probability: float = 0.5
    share: Sequence[float] = (0.2, 0.9)
    knots: int = 5
    air: float = 0.03

    def __post_init__(self) -> None:
        super().__init__(prob=self.probability)
        low, high = self.share
        if not 0 <= low <= high <= 1 or self.knots < 2:
            got = f"{self.share} and {self.knots}"
            raise ValueError(f"expected 0 <= share <= 1, a range, and 2 knots or more, got {got}")

    def randomize(self, data: Any = None) -> None:
        """Draw whether to change, the levels and the share."""
        super().randomize(data)
        self._levels = self.R.uniform(0, 1, self.knots)
        low, high = self.share
        self._weight = self.R.uniform(low, high)

    def __call__(self, img: NdarrayOrTensor, randomize: bool = True) -> NdarrayOrTensor:
        """Remap an image ``(C, H, W)`` with levels in [0, 1]; the same shape, float32."""
        if randomize:
            self.randomize()
        data = convert_to_numpy(img).astype(np.float32)
        if self._do_transform:
            levels = self._levels
            data = blend_with_curve(data, levels, self._weight, top=1, air=self.air)
        return convert_to_dst_type(data, img, dtype=torch.float32)[0]


class RandRemapd(RandomKeyedTransform):
    """Dictionary version of [`RandRemap`][], whose keyword arguments it takes; each key has its own draws."""

    array_class = RandRemap
