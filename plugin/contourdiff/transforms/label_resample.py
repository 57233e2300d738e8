# SPDX-License-Identifier: Apache-2.0
"""Labels at points between their voxels, without the steps of the nearest voxel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
from scipy.ndimage import find_objects

CHUNK_VOXELS = 2**20
"""Points that are sampled at once: their neighbors take about 100 MB."""


class LabelSampler:
    """Values of a label at any points: each class is interpolated linearly by itself, and the largest share wins.

    That is linear interpolation of the one-hot label, at a cost that does not depend on the number of classes.

    Args:
        label: ``(H, W, D)``, of any type; 0 is background.
    """

    def __init__(self, label: np.ndarray) -> None:
        self.label = label
        self._last = np.array(label.shape)[:, None] - 1
        boxes = find_objects((label != 0).astype(np.uint8))
        if boxes:
            self._box = [(along.start, along.stop) for along in boxes[0]]
        else:
            self._box = [(0, 0)] * 3  # nothing is near

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Values at ``points (3, ...)`` in voxels -> ``(...)``; points outside take the nearest value."""
        flat = points.reshape(3, -1)
        inside = flat.clip(0, self._last)
        near = np.ones(flat.shape[1], dtype=bool)
        for along, (start, stop) in zip(inside, self._box, strict=True):
            near &= (along > start - 1) & (along < stop)
        values = np.zeros(flat.shape[1], self.label.dtype)
        values[near] = self._sampled(inside[:, near])
        return values.reshape(points.shape[1:])

    def _sampled(self, points: np.ndarray) -> np.ndarray:
        """Values at points inside, ``(3, N)`` -> ``(N,)``."""
        lower = np.floor(points).astype(np.intp)
        upper = np.minimum(lower + 1, self._last)
        upper_share = (points - lower).astype(np.float32)
        ends = (lower, upper)
        shares = (1 - upper_share, upper_share)
        corners = np.empty((8, points.shape[1]), self.label.dtype)
        weights = np.empty(corners.shape, np.float32)
        for number, (i, j, k) in enumerate(product((0, 1), repeat=3)):
            corners[number] = self.label[ends[i][0], ends[j][1], ends[k][2]]
            weights[number] = shares[i][0] * shares[j][1] * shares[k][2]
        sampled = corners[0].copy()
        mixed = np.flatnonzero((corners != corners[0]).any(axis=0))
        sampled[mixed] = _largest(corners[:, mixed], weights[:, mixed])
        return sampled


def _largest(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Value with the largest sum of weights in each column, ``(8, N)`` both -> ``(N,)``; the first of equal ones."""
    sums = np.empty_like(weights)
    for number, value in enumerate(values):
        sums[number] = np.where(values == value, weights, 0).sum(axis=0)
    winner = sums.argmax(axis=0)
    return np.take_along_axis(values, winner[None], axis=0)[0]


def resample_label(label: np.ndarray, affine: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Label values ``(H, W, D)`` on a grid of ``shape``, whose voxels ``affine (4, 4)`` maps to those of ``label``."""
    sample = LabelSampler(label)
    resampled = np.empty(shape, label.dtype)
    thickness = max(CHUNK_VOXELS // math.prod(shape[1:]), 1)
    for start in range(0, shape[0], thickness):
        slab = resampled[start : start + thickness]
        voxels = np.indices(slab.shape, dtype=np.float64)
        voxels[0] += start
        points = np.tensordot(affine[:3, :3], voxels, axes=1)
        points += affine[:3, 3].reshape(3, 1, 1, 1)
        slab[...] = sample(points)
    return resampled
