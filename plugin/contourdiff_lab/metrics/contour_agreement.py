# SPDX-License-Identifier: Apache-2.0
"""Measures that MONAI lacks: do two contours agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from contourdiff.limits import check_number
from contourdiff.metrics.contour_fidelity import near


class ContourAgreement(NamedTuple):
    """Agreement of a contour with a reference, each number a share in [0, 1]."""

    precision: float
    recall: float
    f1: float


def contour_agreement(
    contour: np.ndarray,
    reference: np.ndarray,
    tolerance_px: float = 2.0,
    *,
    spacing: Sequence[float] = (1.0, 1.0),
) -> ContourAgreement:
    """Share of each contour that lies near the other, as in the boundary F1 of edge detection.

    Both are ``(H, W)``, nonzero on the contour. Precision is the share of the pixels of ``contour`` with a pixel of
    ``reference`` at most ``tolerance_px`` away (Euclidean), recall the reverse, f1 their harmonic mean. Two empty
    contours agree (1, 1, 1); an empty one and another do not (0, 0, 0). ``spacing`` is the size of a pixel along H and
    W; ``tolerance_px`` is in its unit. Raises ``ValueError`` unless both are 2-D and of one shape, ``tolerance_px`` is
    0 or more, and ``spacing`` two positives.
    """
    points = np.asarray(contour) != 0
    reference_points = np.asarray(reference) != 0
    if points.ndim != 2 or points.shape != reference_points.shape:
        shapes = f"{points.shape} and {reference_points.shape}"
        raise ValueError(
            f"expected two contours (H, W) of one shape, got {shapes}; compare slice by slice, on one grid"
        )
    check_number("tolerance_px", tolerance_px, 0)
    sizes = np.asarray(spacing)
    is_size = (sizes > 0) & (sizes < np.inf)
    if len(sizes) != 2 or not is_size.all():
        raise ValueError(
            f"spacing must be two positive numbers, of H and W, got {spacing}; pass that of the slice"
        )
    precision = _share_near(points, reference_points, tolerance_px, spacing)
    recall = _share_near(reference_points, points, tolerance_px, spacing)
    f1 = 2 * precision * recall / ((precision + recall) or 1)
    return ContourAgreement(precision, recall, f1)


def _share_near(
    points: np.ndarray, reference: np.ndarray, tolerance: float, spacing: Sequence[float]
) -> float:
    """Share of ``points`` near ``reference``; without points 1 if there is no reference either, else 0."""
    if not points.any():
        return float(not reference.any())
    return float(near(reference, tolerance, spacing)[points].mean())
