# SPDX-License-Identifier: Apache-2.0
"""Background filter and contour of one slice: what CT and MR have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.ndimage import (
    binary_erosion,
    distance_transform_edt,
    find_objects,
    generate_binary_structure,
    minimum_filter,
    zoom,
)
from skimage.exposure import histogram
from skimage.feature import canny
from skimage.morphology import remove_small_holes, remove_small_objects

BINS = 256  # of the histogram
FINER = 3  # pixels of the distance for each one of the slice
FAR_PX = 6  # around a mask, of the pixels with a distance

MARROW_MM = 0.7
"""Depth of the border of the marrow below the surface of a bone, where MR has most of its contours."""
SOFT_TISSUE_MM = 1.6
"""Height of the border of the soft tissue above it: cortical bone and ligaments between the two are dark in MR."""
CORTEX_MM = 5.5
"""Depth below the surface to which contours of CT are those of cortical bone."""
SURFACE_MM = 3.0
"""Height above the surface to which contours of CT are those of the bone."""


def foreground_mask(
    image: np.ndarray, *, classes: int = 2, min_object_px: float = 8000, max_hole_px: float = 3000
) -> np.ndarray:
    """Body mask of one slice (Chen et al. 2024, arXiv 2403.10786, the filter M_filter).

    Threshold at the lowest of the ``classes - 1`` multi-Otsu levels, which separates body from air; erode by one pixel
    (4-neighbors); remove connected objects of fewer than ``min_object_px`` pixels (a table, a wire); fill enclosed
    holes of at most ``max_hole_px`` pixels (bowel gas, dark marrow). ``image`` is ``(H, W)`` in [0, 255], the mask
    ``(H, W)`` bool, empty for a slice with fewer gray levels than classes or without an object large enough. Raises
    ``ValueError`` as [`checked_slice`][], or if ``classes`` is below 2.
    """
    image = checked_slice(image)
    if classes < 2:
        raise ValueError(f"classes must be 2 or more, got {classes}")
    empty = np.zeros(image.shape, dtype=bool)
    if image.size == 0 or np.unique(image).size < classes:
        return empty
    try:
        threshold = lowest_multiotsu_threshold(image, classes)
    except ValueError:  # the histogram has too few values
        threshold = float(image.mean())
    # the border of the image is no border of the body
    mask = binary_erosion(image > threshold, border_value=1)
    mask = remove_small_objects(mask, max_size=max(round(min_object_px) - 1, 0))
    if not mask.any():  # a small slice without a body would be filled as one hole
        return empty
    return np.asarray(remove_small_holes(mask, max_size=max(round(max_hole_px), 0)), dtype=bool)


def lowest_multiotsu_threshold(image: np.ndarray, classes: int) -> float:
    """The lowest of the ``classes - 1`` thresholds of ``skimage.filters.threshold_multiotsu``, in gray levels.

    scikit-image tries every combination of thresholds, 2.8 million for 4 classes. Here the best upper ends of 2, 3, ...
    classes are found one after the other, as the variance between classes is a sum over them; the sums are
    scikit-image's, in float32, with its weight of 1 for the first bin. Where thresholds are equally good but for
    rounding, it may be another one of them: a few pixels of such a slice change. Raises ``ValueError`` for fewer gray
    levels than classes.

    References:
        Liao, Chen and Chung, "A Fast Algorithm for Multilevel Thresholding", J. Inf. Sci. Eng. 17 (2001).
    """
    counts, centers = histogram(image.ravel(), BINS, source_range="image", normalize=True)
    shares = counts.astype(np.float32)
    filled = np.flatnonzero(shares)
    if len(filled) < classes:
        raise ValueError(f"expected {classes} gray levels or more, got {len(filled)}")
    if len(filled) == classes:
        return float(centers[filled[0]])
    variances = _class_variances(shares)
    best = variances[0]  # of the classes so far, by the bin at which the last one ends
    ends_before = []
    for _ in range(classes - 1):
        sums = best[:-1, None] + variances[1:]
        ends_before.append(sums.argmax(axis=0))
        best = sums.max(axis=0)
    end = BINS - 1
    for ends in reversed(ends_before):
        end = int(ends[end])
    return float(centers[end])


def _class_variances(shares: np.ndarray) -> np.ndarray:
    """Share of a class in the variance between classes, by its first and last bin; -inf where the last comes first."""
    bins = np.arange(len(shares), dtype=np.float32)
    weights = np.maximum(bins, 1)
    zeroth = np.cumsum(shares)
    first = np.cumsum(weights * shares)
    zeroth_before = np.roll(zeroth, 1)
    first_before = np.roll(first, 1)
    zeroth_before[0] = 0
    first_before[0] = 0
    sizes = zeroth[None] - zeroth_before[:, None]
    moments = first[None] - first_before[:, None]
    variances = np.zeros_like(sizes)
    np.divide(moments**2, sizes, out=variances, where=sizes > 0)
    variances[bins[:, None] > bins[None]] = -np.inf
    return variances


def background_filter(image: np.ndarray, **options: Any) -> np.ndarray:
    """Set everything outside [`foreground_mask`][], whose ``options`` it takes, to 0: ``(H, W)`` -> the same shape."""
    return np.asarray(image) * foreground_mask(image, **options)


def contour_of(
    image: np.ndarray,
    *,
    sigma_px: float = 0.8,
    low_threshold: float = 60.0,
    high_threshold: float = 112.0,
) -> np.ndarray:
    """Canny contour of one slice, ``c = Canny(x0)`` in the paper: ``(H, W)`` float32, 1 on the contour and 0 elsewhere.

    It is empty for constant, empty and tiny slices. Errors are those of [`checked_slice`][] and [`check_thresholds`][].

    Args:
        image: ``(H, W)`` gray levels in [0, 255].
        sigma_px: standard deviation of the Gaussian that is applied first, in pixels.
        low_threshold: gradient magnitude (gray levels, scikit-image's Sobel) from which a contour may continue.
        high_threshold: gradient magnitude from which a contour may start.

    Notes:
        The contour depends on where gray levels change, not on which tissue is the brighter one. The defaults
        approximate the paper's 3x3 blur and OpenCV thresholds of 80 and 150 with scikit-image's gradient. Thresholds
        are absolute, so the image must be in gray levels of the same window as in training.

    References:
        Canny, "A Computational Approach to Edge Detection", IEEE TPAMI 8 (1986), doi 10.1109/TPAMI.1986.4767851.

    Examples:
        >>> import numpy as np
        >>> image = np.zeros((7, 7))
        >>> image[2:5, 2:5] = 200
        >>> contour_of(image, sigma_px=0.5, low_threshold=20, high_threshold=40).astype(int)
        array([[0, 0, 0, 0, 0, 0, 0],
               [0, 0, 0, 1, 0, 0, 0],
               [0, 0, 1, 0, 1, 0, 0],
               [0, 1, 0, 0, 0, 1, 0],
               [0, 0, 1, 0, 1, 0, 0],
               [0, 0, 0, 1, 0, 0, 0],
               [0, 0, 0, 0, 0, 0, 0]])
    """
    image = checked_slice(image)
    check_thresholds(low_threshold, high_threshold)
    if min(image.shape) < 3 or np.ptp(image) == 0:
        return np.zeros(image.shape, dtype=np.float32)
    return canny(image, sigma_px, low_threshold, high_threshold).astype(np.float32)


def outline_of(label: np.ndarray) -> np.ndarray:
    """Outline of the classes of one slice: ``(H, W)`` label values -> float32, 1 on the outline and 0 elsewhere.

    It is one pixel wide, also between two classes that touch: a pixel is on it if one of its 4 neighbors has a lower
    value. The border of the slice is no outline.

    Examples:
        >>> import numpy as np
        >>> outline_of(np.array([[0, 0, 0, 0, 0], [1, 1, 1, 2, 2], [1, 1, 1, 2, 2]])).astype(int)
        array([[0, 0, 0, 0, 0],
               [1, 1, 1, 1, 1],
               [0, 0, 0, 1, 0]])
    """
    neighbors = generate_binary_structure(2, 1)
    lowest = minimum_filter(label, footprint=neighbors, mode="nearest")
    return np.asarray(label > lowest, dtype=np.float32)


def bone_contour(
    contour: np.ndarray,
    bones: Sequence[np.ndarray],
    pixel_mm: Sequence[float],
    *,
    soft_tissue: bool = False,
) -> np.ndarray:
    """Contour of one slice with bones as MR shows them: ``(H, W)`` float32, 1 on the contour and 0 elsewhere.

    Cortical bone is bright in CT, with a contour outside and another one inside. It is dark in MR, where most contours
    are at the border of the marrow, [`MARROW_MM`][] below the surface. So the contours of CT around the surface are
    replaced by that one.

    Args:
        contour: of the CT, ``(H, W)``.
        bones: a mask ``(H, W)`` for each bone.
        pixel_mm: size of a pixel along both axes.
        soft_tissue: add the border of the soft tissue, [`SOFT_TISSUE_MM`][] above the surface. Ligaments, which are as
            dark as cortical bone, hide it in a part of MR.

    Examples:
        >>> import numpy as np
        >>> bone = np.zeros((9, 9), bool)
        >>> bone[2:7, 2:7] = True
        >>> bone_contour(np.zeros((9, 9)), [bone], (1.0, 1.0)).astype(int)[4]
        array([0, 0, 1, 0, 0, 0, 1, 0, 0])
    """
    heights = [surface_distance(bone, pixel_mm) for bone in bones]
    changed = np.array(contour, dtype=np.float32)
    for height in heights:
        changed[(height > -CORTEX_MM) & (height < SURFACE_MM)] = 0
    half_px = sum(pixel_mm) / 4  # an outline is of the pixels inside
    for height in heights:
        changed = np.maximum(changed, outline_of(height <= half_px - MARROW_MM))
    if soft_tissue and heights:
        is_outside = np.min(heights, axis=0) > 0
        for height in heights:
            changed = np.maximum(
                changed, is_outside * outline_of(height <= half_px + SOFT_TISSUE_MM)
            )
    return changed


def surface_distance(mask: np.ndarray, pixel_mm: Sequence[float]) -> np.ndarray:
    """Distance from the surface of a mask ``(H, W)``, mm, negative inside: ``(H, W)``, infinite far outside.

    It is that of the smooth surface between the centers of pixels, to a third of a pixel.
    """
    distance = np.full(mask.shape, np.inf)
    boxes = find_objects(np.asarray(mask, dtype=np.uint8))
    if not boxes:
        return distance
    box = tuple(slice(max(part.start - FAR_PX, 0), part.stop + FAR_PX) for part in boxes[0])
    fine = zoom(mask[box].astype(np.float32), FINER, order=1, mode="nearest", grid_mode=True) > 0.5
    step = [size / FINER for size in pixel_mm]
    half = min(step) / 2
    outside = distance_transform_edt(~fine, sampling=step) - half
    inside = distance_transform_edt(fine, sampling=step) - half
    signed = np.where(fine, -inside, outside)
    distance[box] = signed[FINER // 2 :: FINER, FINER // 2 :: FINER]
    return distance


def check_thresholds(low: float, high: float) -> None:
    """Raise ``ValueError`` unless ``0 <= low <= high``."""
    if not 0 <= low <= high:
        raise ValueError(f"expected 0 <= low_threshold <= high_threshold, got {low} and {high}")


def checked_slice(image: np.ndarray) -> np.ndarray:
    """The slice ``(H, W)`` as float64; ``ValueError`` if it is not two-dimensional or not finite."""
    image = np.asarray(image, dtype=np.float64)
    if image.ndim != 2:
        raise ValueError(
            f"expected one slice (H, W), got an array of shape {image.shape}; pass volumes slice by slice"
        )
    if not np.isfinite(image).all():
        raise ValueError("expected finite gray levels, got NaN or infinity; repair the image first")
    return image
