# SPDX-License-Identifier: Apache-2.0
"""Measures that MONAI lacks: do two contours agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.ndimage import binary_dilation, distance_transform_edt

from contourdiff.limits import check_number

LARGEST_DISC_PX = 16
"""Radius up to which a contour is dilated; beyond, its distance transform is faster."""


class ContourAgreement(NamedTuple):
    """Agreement of a contour with a reference, each number a share in [0, 1]."""

    precision: float
    recall: float
    f1: float


def agreement_of(precision: float, recall: float) -> ContourAgreement:
    """Precision and recall with their harmonic mean, 0 where both are 0."""
    f1 = 2 * precision * recall / ((precision + recall) or 1)
    return ContourAgreement(precision, recall, f1)


def near(
    contour: np.ndarray, tolerance: float, spacing: Sequence[float] | None = None
) -> np.ndarray:
    """Pixels at most ``tolerance`` from a contour: bool ``(H, W)`` -> the same; none where there is no contour.

    Distances are in pixels, or in the unit of ``spacing``, such as mm; the tolerance then grows by one millionth, for
    a header holds float32.
    """
    if not contour.any():
        return np.zeros(contour.shape, dtype=bool)
    reach = tolerance if spacing is None else tolerance * (1 + 1e-6)
    height, width = (1.0, 1.0) if spacing is None else spacing
    if reach > LARGEST_DISC_PX * min(height, width):
        distances = distance_transform_edt(~contour, sampling=spacing)
        return distances <= reach
    rows = height * _offsets(reach / height)
    columns = width * _offsets(reach / width)
    disc = np.hypot(rows[:, None], columns) <= reach
    return binary_dilation(contour, disc)


def _offsets(reach_px: float) -> np.ndarray:
    """Whole numbers up to ``reach_px``, of both signs."""
    last = int(reach_px)
    return np.arange(-last, last + 1)


def contour_agreement(
    contour: np.ndarray,
    reference: np.ndarray,
    tolerance_px: float = 2.0,
    *,
    spacing: Sequence[float] | None = None,
) -> ContourAgreement:
    """Share of each contour that lies near the other, as in the boundary F1 of edge detection.

    Both are ``(H, W)``, nonzero on the contour. Precision is the share of the pixels of ``contour`` with a pixel of
    ``reference`` at most ``tolerance_px`` away (Euclidean), recall the reverse, f1 their harmonic mean. Two empty
    contours agree (1, 1, 1); an empty one and another do not (0, 0, 0). ``spacing`` is the size of a pixel along H and
    W; ``tolerance_px`` is then in its unit, see [`near`][]. Raises ``ValueError`` unless both are 2-D and of one shape,
    ``tolerance_px`` >= 0, and ``spacing`` two positives.
    """
    points = np.asarray(contour) != 0
    reference_points = np.asarray(reference) != 0
    if points.ndim != 2 or points.shape != reference_points.shape:
        shapes = f"{points.shape} and {reference_points.shape}"
        raise ValueError(
            f"expected two contours (H, W) of one shape, got {shapes}; compare slice by slice, on one grid"
        )
    check_number("tolerance_px", tolerance_px, 0)
    if spacing is not None:
        sizes = np.asarray(spacing)
        is_size = (sizes > 0) & (sizes < np.inf)
        if len(sizes) != 2 or not is_size.all():
            raise ValueError(
                f"spacing must be two positive numbers, of H and W, got {spacing}; pass that of the slice"
            )
    precision = _share_near(points, reference_points, tolerance_px, spacing)
    recall = _share_near(reference_points, points, tolerance_px, spacing)
    return agreement_of(precision, recall)


def _share_near(
    points: np.ndarray, reference: np.ndarray, tolerance: float, spacing: Sequence[float] | None
) -> float:
    """Share of ``points`` near ``reference``; without points 1 if there is no reference either, else 0."""
    if not points.any():
        return float(not reference.any())
    return float(near(reference, tolerance, spacing)[points].mean())
