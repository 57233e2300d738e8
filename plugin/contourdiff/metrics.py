# SPDX-License-Identifier: Apache-2.0
"""Measures that MONAI lacks: do two contours agree."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.ndimage import distance_transform_edt


class ContourAgreement(NamedTuple):
    """Agreement of a contour with a reference, each number a share in [0, 1]."""

    precision: float
    recall: float
    f1: float


def contour_agreement(contour: np.ndarray, reference: np.ndarray, tolerance_px: float = 2.0) -> ContourAgreement:
    """Share of each contour that lies near the other, as in the boundary F1 of edge detection.

    Precision is the share of the pixels of ``contour`` with a pixel of ``reference`` at most ``tolerance_px`` away
    (Euclidean), recall the share of the pixels of ``reference`` with one of ``contour``, f1 their harmonic mean.
    Two empty contours agree (1, 1, 1); an empty one and another do not (0, 0, 0).

    Args:
        contour: ``(H, W)``, nonzero on the contour.
        reference: ``(H, W)``, nonzero on the contour to compare with.
        tolerance_px: largest distance that counts as near, in pixels; 0 asks for the same pixel.

    Raises:
        ValueError: if the arrays are not two-dimensional or differ in shape, or ``tolerance_px`` is not 0 or more.
    """
    found, wanted = np.asarray(contour) != 0, np.asarray(reference) != 0
    if found.ndim != 2 or found.shape != wanted.shape:
        raise ValueError(
            f"expected two contours (H, W) of one shape, got {found.shape} and {wanted.shape}; "
            "compare slice by slice, on one grid"
        )
    if not tolerance_px >= 0:
        raise ValueError(f"tolerance_px must be 0 or more, got {tolerance_px}")
    if not found.any() or not wanted.any():
        empty = float(not found.any() and not wanted.any())
        return ContourAgreement(empty, empty, empty)
    precision = float((distance_transform_edt(~wanted)[found] <= tolerance_px).mean())
    recall = float((distance_transform_edt(~found)[wanted] <= tolerance_px).mean())
    total = precision + recall
    return ContourAgreement(precision, recall, 2 * precision * recall / total if total > 0 else 0.0)
