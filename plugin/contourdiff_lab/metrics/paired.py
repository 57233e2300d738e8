# SPDX-License-Identifier: Apache-2.0
"""Similarity of two slices of one anatomy on one grid, such as a translation and the real MR of the same person."""

from __future__ import annotations

import math

import numpy as np
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

GRADIENT_SIGMA_PX = 1.0
"""Standard deviation of the Gaussian whose derivatives are compared by [`gradient_correlation`][]."""
MIN_PIXELS = 50
"""A smaller mask has no similarity."""


def normalized_correlation(first: np.ndarray, second: np.ndarray, mask: np.ndarray) -> float:
    """Pearson's correlation of the gray levels of two slices ``(H, W)`` within ``mask``, in [-1, 1].

    NaN for a small mask, or where a slice is constant.
    """
    inside = np.asarray(mask, dtype=bool)
    a = np.asarray(first, dtype=np.float64)[inside]
    b = np.asarray(second, dtype=np.float64)[inside]
    if len(a) < MIN_PIXELS or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])


def gradient_correlation(first: np.ndarray, second: np.ndarray, mask: np.ndarray) -> float:
    """Mean over both axes of the correlation of the gradients of two slices ``(H, W)`` within ``mask``, in [-1, 1].

    Edges at the same place and of the same direction, dark to bright, raise it; smooth shading does not count
    (Penney et al., IEEE Transactions on Medical Imaging 17(4), 1998). NaN as [`normalized_correlation`][].
    """
    correlations = []
    for axis in (0, 1):
        order = [0, 0]
        order[axis] = 1
        a = gaussian_filter(np.asarray(first, dtype=np.float64), GRADIENT_SIGMA_PX, order=order)
        b = gaussian_filter(np.asarray(second, dtype=np.float64), GRADIENT_SIGMA_PX, order=order)
        correlations.append(normalized_correlation(a, b, mask))
    return float(np.mean(correlations))


def structural(first: np.ndarray, second: np.ndarray, mask: np.ndarray) -> float:
    """Mean of the structural similarity (SSIM, 7 x 7 pixels) of two slices ``(H, W)`` in [0, 1] within ``mask``.

    NaN for a small mask.
    """
    inside = np.asarray(mask, dtype=bool)
    if inside.sum() < MIN_PIXELS:
        return math.nan
    _, of_pixels = structural_similarity(first, second, data_range=1.0, full=True)
    return float(of_pixels[inside].mean())


def scaled(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Gray levels of a slice or volume scaled so that percentiles 1 and 95 within ``mask`` become 0 and 1; clipped."""
    low, high = np.percentile(image[mask], [1, 95])
    return np.clip((image - low) / max(high - low, 1e-6), 0, 1)


def similarity(first: np.ndarray, second: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """SSIM, NCC and gradient correlation of two volumes ``(slices, H, W)``, means over slices; levels are scaled first.

    ``mask (slices, H, W)`` is where they are compared. Raises ``ValueError`` unless the shapes are one.
    """
    if not first.shape == second.shape == mask.shape:
        raise ValueError(
            f"expected volumes and a mask on one grid, got {first.shape}, {second.shape} and {mask.shape}; "
            "resample them"
        )
    if not mask.any():
        return dict.fromkeys(("ssim", "ncc", "gradient_correlation"), math.nan)
    a = scaled(first, mask)
    b = scaled(second, mask)
    values: dict[str, list[float]] = {"ssim": [], "ncc": [], "gradient_correlation": []}
    for one, other, inside in zip(a, b, mask, strict=True):
        if inside.sum() < MIN_PIXELS:
            continue
        values["ssim"].append(structural(one, other, inside))
        values["ncc"].append(normalized_correlation(one, other, inside))
        values["gradient_correlation"].append(gradient_correlation(one, other, inside))
    return {name: float(np.nanmean(entries)) for name, entries in values.items() if entries}
