# SPDX-License-Identifier: Apache-2.0
"""Labels at points between their voxels, without the steps of the nearest voxel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np

CHUNK_VOXELS = 2**20
"""Points that are sampled at once: their neighbors take about 100 MB."""


def label_at(label: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Values of ``label (H, W, D)`` at ``points``, ``(3, ...)`` in its voxels -> ``(...)``, of the type of ``label``.

    Each class is interpolated linearly by itself, as if the label were one-hot, and the largest share wins. Points
    outside take the nearest value.
    """
    flat = points.reshape(3, -1)
    last = np.array(label.shape)[:, None] - 1
    inside = flat.clip(0, last)
    lower = np.floor(inside).astype(np.intp)
    upper = np.minimum(lower + 1, last)
    upper_share = (inside - lower).astype(np.float32)
    ends = (lower, upper)
    shares = (1 - upper_share, upper_share)
    corners = np.empty((8, flat.shape[1]), label.dtype)
    weights = np.empty((8, flat.shape[1]), np.float32)
    for number, (i, j, k) in enumerate(product((0, 1), repeat=3)):
        corners[number] = label[ends[i][0], ends[j][1], ends[k][2]]
        weights[number] = shares[i][0] * shares[j][1] * shares[k][2]
    sampled = corners[0].copy()
    mixed = np.flatnonzero((corners != corners[0]).any(axis=0))
    sampled[mixed] = _largest(corners[:, mixed], weights[:, mixed])
    return sampled.reshape(points.shape[1:])


def _largest(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Value with the largest sum of weights in each column, ``(8, N)`` both -> ``(N,)``; the first of equal ones."""
    sums = np.empty_like(weights)
    for number, value in enumerate(values):
        sums[number] = np.where(values == value, weights, 0).sum(axis=0)
    winner = sums.argmax(axis=0)
    return np.take_along_axis(values, winner[None], axis=0)[0]


def resample_label(label: np.ndarray, affine: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Label values ``(H, W, D)`` on a grid of ``shape``, whose voxels ``affine (4, 4)`` maps to those of ``label``."""
    resampled = np.empty(shape, label.dtype)
    thickness = max(CHUNK_VOXELS // math.prod(shape[1:]), 1)
    for start in range(0, shape[0], thickness):
        slab = resampled[start : start + thickness]
        voxels = np.indices(slab.shape, dtype=np.float64)
        voxels[0] += start
        points = np.tensordot(affine[:3, :3], voxels, axes=1)
        points += affine[:3, 3].reshape(3, 1, 1, 1)
        slab[...] = label_at(label, points)
    return resampled
