# SPDX-License-Identifier: Apache-2.0
"""Measures that MONAI lacks: do two contours agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.ndimage import distance_transform_edt


class ContourAgreement(NamedTuple):
    """Agreement of a contour with a reference, each number a share in [0, 1]."""

    precision: float
    recall: float
    f1: float


def near(contour: np.ndarray, tolerance: float, spacing: Sequence[float] | None = None) -> np.ndarray:
    """Pixels at most ``tolerance`` from a contour: bool ``(H, W)`` -> the same; none where there is no contour.

    Distances are in pixels, or in the unit of ``spacing``; then one millionth more than the tolerance is near, for a
    header holds float32.
    """
    if not contour.any():
        return np.zeros(contour.shape, dtype=bool)
    reach = tolerance if spacing is None else tolerance * (1 + 1e-6)
    return np.asarray(distance_transform_edt(~contour, sampling=spacing) <= reach)


def contour_agreement(
    contour: np.ndarray,
    reference: np.ndarray,
    tolerance_px: float = 2.0,
    *,
    spacing: Sequence[float] | None = None,
) -> ContourAgreement:
    """Share of each contour that lies near the other, as in the boundary F1 of edge detection.

    Precision is the share of the pixels of ``contour`` with a pixel of ``reference`` at most ``tolerance_px`` away
    (Euclidean), recall the share of the pixels of ``reference`` with one of ``contour``, f1 their harmonic mean.
    Two empty contours agree (1, 1, 1); an empty one and another do not (0, 0, 0).

    Args:
        contour: ``(H, W)``, nonzero on the contour.
        reference: ``(H, W)``, nonzero on the contour to compare with.
        tolerance_px: largest distance that counts as near, in pixels; 0 asks for the same pixel.
        spacing: size of a pixel along H and W. With it distances, and so ``tolerance_px``, are in the unit of
            ``spacing``, such as mm; one millionth more than the tolerance is near, for a header holds float32.

    Raises:
        ValueError: if the arrays are not two-dimensional or differ in shape, ``tolerance_px`` is not 0 or more, or
            ``spacing`` is not two positive numbers.
    """
    found, wanted = np.asarray(contour) != 0, np.asarray(reference) != 0
    if found.ndim != 2 or found.shape != wanted.shape:
        raise ValueError(
            f"expected two contours (H, W) of one shape, got {found.shape} and {wanted.shape}; "
            "compare slice by slice, on one grid"
        )
    if not tolerance_px >= 0:
        raise ValueError(f"tolerance_px must be 0 or more, got {tolerance_px}")
    if spacing is not None and (len(spacing) != 2 or not all(0 < size < np.inf for size in spacing)):
        raise ValueError(f"spacing must be two positive numbers, of H and W, got {spacing}; pass that of the slice")
    if not found.any() or not wanted.any():
        empty = float(not found.any() and not wanted.any())
        return ContourAgreement(empty, empty, empty)
    precision = float(near(wanted, tolerance_px, spacing)[found].mean())
    recall = float(near(found, tolerance_px, spacing)[wanted].mean())
    total = precision + recall
    return ContourAgreement(precision, recall, 2 * precision * recall / total if total > 0 else 0.0)
