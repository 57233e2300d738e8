# SPDX-License-Identifier: Apache-2.0
"""Random contours for training: sparser, denser, broken and cluttered ones, as another scanner's may be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import RandomizableTransform
from monai.utils import convert_to_dst_type, convert_to_numpy
from scipy.ndimage import label

from contourdiff.contours import contour_of
from contourdiff.transforms.keyed import KeyedTransform

EIGHT_NEIGHBORS = np.ones((3, 3), dtype=int)
REMAP_KNOTS = 4


def contour_fragments(contour: np.ndarray, cell_px: int, offset: tuple[int, int] = (0, 0)) -> tuple[np.ndarray, int]:
    """Number the pieces of a contour that lie connected within one cell of a grid.

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
    """Canny contour with random smoothing and thresholds, from which fragments are lost and to which some are added.

    The contour of a CT is not that of an MR: where one shows an edge the other may show none. A network that has seen
    only perfect contours paints every stray edge and leaves every gap. What is added are fragments of the same
    contour, moved elsewhere, so that they look like edges.

    Args:
        sigma_px: smallest and largest smoothing before the gradient, in pixels; drawn uniformly.
        high_threshold: smallest and largest upper threshold, in gray levels; drawn uniformly on a logarithmic scale.
        low_ratio: lower threshold as a share of the upper one.
        dropout: a share of the fragments drawn from 0 to this is lost.
        clutter: a share of the fragments drawn from 0 to this is repeated elsewhere.
        cell_px: fragments are connected pieces within squares of this side.
        remap: gray levels are remapped with this probability, by a curve through ``REMAP_KNOTS`` random levels, blended
            with the image itself by a random share. Air, exactly 0, stays 0.
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


class RandContourd(RandomizableTransform, KeyedTransform):
    """Dictionary version of :class:`RandContour`; each key has its own draws.

    Args:
        keys: images whose contour is wanted.
        output_keys: where the contours go; ``None`` replaces the images.
        sigma_px: see :class:`RandContour`, as the arguments below.
        high_threshold: see :class:`RandContour`.
        low_ratio: see :class:`RandContour`.
        dropout: see :class:`RandContour`.
        clutter: see :class:`RandContour`.
        cell_px: see :class:`RandContour`.
        remap: see :class:`RandContour`.
        allow_missing_keys: do not raise where a key is absent.
    """

    transform: RandContour

    def __init__(
        self,
        keys: KeysCollection,
        output_keys: KeysCollection | None = None,
        sigma_px: Sequence[float] = (1.0, 1.0),
        high_threshold: Sequence[float] = (40.0, 40.0),
        low_ratio: float = 0.5,
        dropout: float = 0.0,
        clutter: float = 0.0,
        cell_px: int = 8,
        remap: float = 0.0,
        allow_missing_keys: bool = False,
    ) -> None:
        contour = RandContour(sigma_px, high_threshold, low_ratio, dropout, clutter, cell_px, remap)
        KeyedTransform.__init__(self, keys, contour, output_keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob=1.0)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandContourd:
        """Seed the draws."""
        super().set_random_state(seed, state)
        self.transform.set_random_state(seed, state)
        return self


RandContourDict = RandContourd
