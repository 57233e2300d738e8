# SPDX-License-Identifier: Apache-2.0
"""Training items of a cascade: what its first network and its second are given of a slice and its contour."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform, Randomizable
from monai.utils import convert_to_tensor
from scipy.ndimage import gaussian_filter, map_coordinates, zoom
from torch import Tensor
from torch.nn.functional import avg_pool2d, pixel_unshuffle

from contourdiff.limits import check_number
from contourdiff.networks import enlarge

FAULT_GRID = 5  # points along each side at which random shifts of the coarse image are drawn


@dataclass(eq=False)
class CoarseStaged(MapTransform):
    """Item of the first network: the image at low resolution, the contour of every pixel folded into channels.

    ``image (1, H, W)`` is averaged over squares of ``factor`` pixels; ``contour (1, H, W)`` becomes
    ``(factor**2, H / factor, W / factor)``. H and W must be multiples of ``factor``.
    """

    factor: int = 2

    def __post_init__(self) -> None:
        super().__init__(("image", "contour"))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace image and contour."""
        out = dict(data)
        out["image"] = avg_pool2d(_float_tensor(data["image"]), self.factor)
        out["contour"] = pixel_unshuffle(_float_tensor(data["contour"]), self.factor)
        return out


@dataclass(eq=False)
class RefinerStaged(MapTransform, Randomizable):
    """Item of the second network: the contour, and beside it the enlarged coarse image with random faults.

    ``image (1, H, W)`` in [-1, 1] stays; ``contour (1, H, W)`` becomes ``(2, H, W)``. The coarse image is the average
    over squares of ``factor`` pixels. It is given the faults of a first network, so that the second learns to mend
    them: fine and coarse noise of a standard deviation of up to ``noise`` in the range of the image, and blur, where
    ``noise`` is not 0; and edges shifted by up to about ``shift_px`` pixels of the full resolution.
    """

    factor: int = 2
    noise: float = 0.15
    shift_px: float = 1.5

    def __post_init__(self) -> None:
        super().__init__(("image", "contour"))
        check_number("noise", self.noise, 0)
        check_number("shift_px", self.shift_px, 0)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the coarse image to the contour."""
        contour = _float_tensor(data["contour"])
        coarse = avg_pool2d(_float_tensor(data["image"]), self.factor)
        if self.noise:
            coarse = self._noisy(coarse)
        coarse = enlarge(coarse[None], self.factor)[0]
        if self.noise and self.shift_px:
            coarse = self._shifted(coarse)
        out = dict(data)
        out["contour"] = torch.cat([contour, coarse])
        return out

    def _noisy(self, image: Tensor) -> Tensor:
        fine = self.R.uniform(0, self.noise)
        coarse = self.R.uniform(0, self.noise)
        blur = self.R.uniform(-0.6, 1.0)
        _, height, width = image.shape
        small_height = ceil(height / 4)
        small_width = ceil(width / 4)
        small = self.R.normal(size=(small_height, small_width))
        coarse_noise = zoom(small, 4, order=3)
        coarse_noise = coarse_noise[:height, :width]
        fine_noise = self.R.normal(size=(height, width))
        values = image[0].numpy()
        noisy = values + fine * fine_noise
        noisy = noisy + coarse * coarse_noise
        sigma_px = 0.85 * max(blur, 0)
        blurred = gaussian_filter(noisy, sigma_px)
        clipped = np.clip(blurred, -1, 1)
        return _float_tensor(clipped)[None]

    def _shifted(self, image: Tensor) -> Tensor:
        amount = self.R.uniform(0, self.shift_px)
        size = image.shape[1:]
        factors = np.divide(size, FAULT_GRID)
        shifts = []
        grids = self.R.normal(size=(2, FAULT_GRID, FAULT_GRID))
        for grid in grids:
            dense = zoom(grid, factors, order=3, grid_mode=True, mode="nearest")
            shifts.append(amount * dense)
        pixels = np.indices(size, dtype=np.float32)
        places = pixels + shifts
        values = image[0].numpy()
        shifted = map_coordinates(values, places, order=1, mode="nearest")
        return _float_tensor(shifted)[None]


def _float_tensor(image: Any) -> Tensor:
    return convert_to_tensor(image, track_meta=False).float()
