# SPDX-License-Identifier: Apache-2.0
"""Random contours for training: sparser or denser, with gaps and with false edges."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.config import NdarrayOrTensor
from monai.transforms import Randomizable, RandomizableTransform
from monai.utils import convert_to_dst_type, convert_to_numpy
from scipy.ndimage import label

from contourdiff.contours import contour_of
from contourdiff.transforms.keyed import KeyedTransform

EIGHT_NEIGHBORS = np.ones((3, 3), dtype=int)
REMAP_KNOTS = 4


def contour_fragments(contour: np.ndarray, cell_px: int, offset: tuple[int, int] = (0, 0)) -> tuple[np.ndarray, int]:
    """Number the fragments of a contour: pieces that are connected within a cell of a grid.

    Args:
        contour: ``(H, W)``, nonzero on the contour.
        cell_px: side of the grid's square cells.
        offset: shift of the grid, in pixels.

    Returns:
        ``(H, W)`` int with 0 off the contour and 1 to ``n`` on it, and ``n``.
    """
    rows, columns = ((np.arange(size) + shift) // cell_px for size, shift in zip(contour.shape, offset, strict=True))
    cells = rows[:, None] * (columns.max() + 1) + columns[None, :]
    pieces = label(np.asarray(contour) != 0, EIGHT_NEIGHBORS)[0]
    keys = np.where(pieces > 0, pieces.astype(np.int64) * (int(cells.max()) + 1) + cells + 1, 0)
    values, numbered = np.unique(keys, return_inverse=True)
    numbered = numbered.reshape(contour.shape)
    if values[0] != 0:
        return numbered + 1, len(values)
    return numbered, len(values) - 1


class RandContour(RandomizableTransform):
    """Canny contour with random smoothing and thresholds, random gaps and random false edges.

    CT and MR do not show the same edges. A network trained on perfect contours alone follows every false edge and
    leaves every gap. False edges are fragments of the same contour, moved elsewhere.

    Args:
        sigma_px: range of the smoothing before the gradient, in pixels; uniform.
        high_threshold: range of the upper threshold, in gray levels; uniform on a logarithmic scale.
        low_ratio: lower threshold as a share of the upper one.
        dropout: largest share of the fragments to remove; the share is uniform from 0.
        clutter: largest share of the fragments to repeat elsewhere; the share is uniform from 0.
        cell_px: side of the squares that cut the contour into fragments.
        remap: probability of remapping gray levels by a curve through ``REMAP_KNOTS`` random levels, blended with the
            image by a random share. Air, exactly 0, stays 0.
    """

    def __init__(
        self,
        sigma_px: Sequence[float] = (1.0, 1.0),
        high_threshold: Sequence[float] = (40.0, 40.0),
        low_ratio: float = 0.5,
        dropout: float = 0.0,
        clutter: float = 0.0,
        cell_px: int = 8,
        remap: float = 0.0,
    ) -> None:
        super().__init__(prob=1.0)
        for name, share in (("dropout", dropout), ("clutter", clutter), ("low_ratio", low_ratio), ("remap", remap)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {share}")
        for name, pair in (("sigma_px", sigma_px), ("high_threshold", high_threshold)):
            if len(pair) != 2 or not 0 < pair[0] <= pair[1]:
                raise ValueError(f"{name} must be two numbers, 0 < smallest <= largest, got {list(pair)}")
        if cell_px < 1:
            raise ValueError(f"cell_px must be 1 or more, got {cell_px}")
        self.sigma_px = (float(sigma_px[0]), float(sigma_px[1]))
        self.high_threshold = (float(high_threshold[0]), float(high_threshold[1]))
        self.low_ratio = low_ratio
        self.dropout = dropout
        self.clutter = clutter
        self.cell_px = cell_px
        self.remap = remap

    def __call__(self, img: NdarrayOrTensor, randomize: bool = True) -> NdarrayOrTensor:
        """Contour of one slice: ``(1, H, W)`` gray levels in [0, 255] -> float32 0/1 of that shape."""
        data = convert_to_numpy(img)
        if data.ndim != 3 or data.shape[0] != 1:
            raise ValueError(f"expected one slice (1, H, W), got shape {tuple(data.shape)}; cut volumes into slices")
        if randomize:
            self.randomize(None)
        high = float(np.exp(self._high))
        contour = contour_of(
            self._remapped(data[0]), sigma_px=self._sigma, low_threshold=self.low_ratio * high, high_threshold=high
        ).astype(bool)
        broken = self._broken(contour) if self.dropout or self.clutter else contour
        return convert_to_dst_type(broken[None].astype(np.float32), img, dtype=torch.float32)[0]

    def randomize(self, data: None = None) -> None:
        """Draw smoothing, threshold and the two shares, and a seed for the fragments."""
        super().randomize(data)
        self._sigma = self.R.uniform(self.sigma_px[0], self.sigma_px[1])
        self._high = self.R.uniform(np.log(self.high_threshold[0]), np.log(self.high_threshold[1]))
        self._lost, self._added = self.R.uniform(0, self.dropout), self.R.uniform(0, self.clutter)
        self._seed = int(self.R.randint(2**31))
        self._share = self.R.uniform() if self.R.uniform() < self.remap else 0.0
        self._levels = self.R.uniform(0, 255, REMAP_KNOTS)

    def _remapped(self, image: np.ndarray) -> np.ndarray:
        if self._share == 0:
            return image
        curve = np.interp(image, np.linspace(0, 255, REMAP_KNOTS), self._levels)
        return np.where(image > 0, (1 - self._share) * image + self._share * curve, 0)

    def _broken(self, contour: np.ndarray) -> np.ndarray:
        random = np.random.default_rng(self._seed)
        offset = int(random.integers(self.cell_px)), int(random.integers(self.cell_px))
        fragments, count = contour_fragments(contour, self.cell_px, offset)
        kept = np.append(False, random.random(count) >= self._lost)[fragments]
        repeated = np.append(False, random.random(count) < self._added)[fragments]
        shift = tuple(int(step) for step in random.integers(contour.shape))
        return kept | np.roll(repeated, shift, axis=(0, 1))


class RandContourd(Randomizable, KeyedTransform):
    """Dictionary version of :class:`RandContour`, whose keyword arguments it takes; each key has its own draws."""

    array_class = RandContour

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandContourd:
        """Seed the draws."""
        super().set_random_state(seed, state)
        self.transform.set_random_state(seed, state)
        return self
