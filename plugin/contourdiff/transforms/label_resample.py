# SPDX-License-Identifier: Apache-2.0
"""Labels at points between their voxels, without the steps of the nearest voxel."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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
        is_labelled = label != 0
        boxes = find_objects(is_labelled.astype(np.uint8))
        self._box = [(0, 0)] * 3  # nothing is near
        if boxes:
            self._box = [(along.start, along.stop) for along in boxes[0]]

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Values at ``points (3, ...)`` in voxels -> ``(...)``; points outside take the nearest value."""
        flat = points.reshape(3, -1)
        inside = flat.clip(0, self._last)
        near = np.ones(flat.shape[1], dtype=bool)
        for along, (start, stop) in zip(inside, self._box, strict=True):
            near &= along > start - 1
            near &= along < stop
        values = np.zeros(flat.shape[1], self.label.dtype)
        values[near] = self._sampled(inside[:, near])
        return values.reshape(points.shape[1:])

    def _sampled(self, points: np.ndarray) -> np.ndarray:
        """Values at points inside, ``(3, N)`` -> ``(N,)``."""
        lower = np.floor(points).astype(np.intp)
        upper = np.minimum(lower + 1, self._last)
        upper_share = (points - lower).astype(np.float32)
        row, column, depth = zip(lower, upper, strict=True)
        shares = zip(1 - upper_share, upper_share, strict=True)
        row_share, column_share, depth_share = shares
        count = points.shape[1]
        corners = np.empty((8, count), self.label.dtype)
        weights = np.empty(corners.shape, np.float32)
        ends = product((0, 1), repeat=3)
        for number, (i, j, k) in enumerate(ends):
            corners[number] = self.label[row[i], column[j], depth[k]]
            weights[number] = row_share[i] * column_share[j] * depth_share[k]
        sampled = corners[0].copy()
        differs = corners != corners[0]
        mixed = np.flatnonzero(differs.any(axis=0))
        sampled[mixed] = _largest(corners[:, mixed], weights[:, mixed])
        return sampled


def _largest(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Value with the largest sum of weights in each column, ``(8, N)`` both -> ``(N,)``; the first of equal ones."""
    sums = np.empty_like(weights)
    for number, value in enumerate(values):
        votes = np.where(values == value, weights, 0)
        sums[number] = votes.sum(axis=0)
    winner = sums.argmax(axis=0)
    return np.take_along_axis(values, winner[None], axis=0)[0]


def slabs(shape: Sequence[int]) -> Iterator[slice]:
    """Parts of a grid along its first axis, each of up to ``CHUNK_VOXELS`` points, or one slice."""
    thickness = max(CHUNK_VOXELS // math.prod(shape[1:]), 1)
    for start in range(0, shape[0], thickness):
        yield slice(start, start + thickness)


def resample_label(label: np.ndarray, affine: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Label values ``(H, W, D)`` on a grid of ``shape``, whose voxels ``affine (4, 4)`` maps to those of ``label``."""
    sample = LabelSampler(label)
    matrix = affine[:3, :3]
    offset = affine[:3, 3].reshape(3, 1, 1, 1)
    resampled = np.empty(shape, label.dtype)
    for slab in slabs(shape):
        part = resampled[slab]
        voxels = np.indices(part.shape, dtype=np.float64)
        voxels[0] += slab.start
        points = np.tensordot(matrix, voxels, axes=1)
        points += offset
        part[...] = sample(points)
    return resampled
