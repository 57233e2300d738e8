# SPDX-License-Identifier: Apache-2.0
"""Random contours for training: sparser or denser, with gaps and with false edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.config import NdarrayOrTensor
from monai.transforms import RandomizableTransform
from monai.utils import convert_to_dst_type, convert_to_numpy
from numpy.random import default_rng

from contourdiff.contours import contour_of
from contourdiff.limits import check_number, check_whole
from contourdiff.transforms.contour_faults import (
    contour_with_faults,
    moved,
    pixels_of,
    random_fragments,
)
from contourdiff.transforms.keyed import RandomKeyedTransform
from contourdiff.transforms.rand_remap import blend_with_curve

LOW_RATIO = 0.5
"""Lower threshold as a share of the upper one."""


@dataclass(eq=False)
class RandContour(RandomizableTransform):
    """Canny contour with random smoothing and thresholds, random gaps and random false edges.

    A network trained on perfect contours alone follows every false edge and leaves every gap. False edges are fragments
    of the same contour, moved elsewhere. All draws are uniform, that of the upper threshold on a logarithmic scale.

    Args:
        sigma_px: range of the smoothing before the gradient, in pixels.
        high_threshold: range, in gray levels.
        dropout: largest share of the fragments to remove.
        clutter: largest share of the fragments to repeat elsewhere.
        cell_px: side of the squares that cut the contour into fragments.
        faults: probability of the faults of [`contour_with_faults`][contourdiff.transforms.contour_faults].
        remap: probability of blending the image with itself, remapped by a curve through 4 random levels.
    """

    sigma_px: Sequence[float] = (1.0, 1.0)
    high_threshold: Sequence[float] = (40.0, 40.0)
    dropout: float = 0.0
    clutter: float = 0.0
    cell_px: int = 8
    remap: float = 0.0
    faults: float = 0.0

    def __post_init__(self) -> None:
        super().__init__(prob=1.0)
        for name in ("dropout", "clutter", "remap", "faults"):
            check_number(name, getattr(self, name), 0, 1)
        for name in ("sigma_px", "high_threshold"):
            ends = list(getattr(self, name))
            if len(ends) != 2 or not 0 < ends[0] <= ends[1]:
                raise ValueError(f"{name} must be two numbers, 0 < smallest <= largest, got {ends}")
        check_whole("cell_px", self.cell_px, 1, 4096)

    def __call__(self, img: NdarrayOrTensor, randomize: bool = True) -> NdarrayOrTensor:
        """Contour of one slice: ``(1, H, W)`` gray levels in [0, 255] -> float32 0/1 of that shape."""
        data = convert_to_numpy(img)
        if data.ndim != 3 or data.shape[0] != 1:
            shape = tuple(data.shape)
            raise ValueError(
                f"expected one slice (1, H, W), got shape {shape}; cut volumes into slices"
            )
        if randomize:
            self.randomize(None)
        image = data[0]
        if self._share > 0:
            image = blend_with_curve(image, self._levels, self._share, top=255)
        contour = contour_of(
            image,
            sigma_px=self._sigma,
            low_threshold=LOW_RATIO * self._high,
            high_threshold=self._high,
        )
        if self.dropout or self.clutter:
            contour = self._broken(contour).astype(np.float32)
        if self._has_faults:
            contour = contour_with_faults(
                contour,
                image,
                default_rng([self._seed, 1]),
                sigma_px=self._sigma,
                high_threshold=self._high,
            )
        return convert_to_dst_type(contour[None], img, dtype=torch.float32)[0]

    def randomize(self, data: None = None) -> None:
        """Draw smoothing, threshold and the two shares, and a seed for the fragments."""
        super().randomize(data)
        lowest, highest = self.sigma_px
        self._sigma = self.R.uniform(lowest, highest)
        lowest, highest = self.high_threshold
        low = np.log(lowest)
        high = np.log(highest)
        logarithm = self.R.uniform(low, high)
        self._high = float(np.exp(logarithm))
        self._lost = self.R.uniform(0, self.dropout)
        self._added = self.R.uniform(0, self.clutter)
        self._seed = int(self.R.randint(2**31))
        self._share = 0.0
        if self.R.uniform() < self.remap:
            self._share = self.R.uniform()
        self._levels = self.R.uniform(0, 255, 4)
        self._has_faults = False
        if self.faults > 0:  # draws nothing where it is off
            self._has_faults = self.R.uniform() < self.faults

    def _broken(self, contour: np.ndarray) -> np.ndarray:
        random = default_rng(self._seed)
        fragments, count = random_fragments(contour, self.cell_px, random)
        kept = random.random(count) >= self._lost
        is_repeated = random.random(count) < self._added
        repeated = pixels_of(is_repeated, fragments)
        return pixels_of(kept, fragments) | moved(repeated, random)


class RandContourd(RandomKeyedTransform):
    """Dictionary version of [`RandContour`][], whose keyword arguments it takes; each key has its own draws."""

    array_class = RandContour
