# SPDX-License-Identifier: Apache-2.0
"""Random faults of contours, for training: lost, doubled and displaced pieces."""

from __future__ import annotations

from math import ceil

import numpy as np
from numpy.random import Generator
from scipy.ndimage import gaussian_filter, label, mean, sobel
from skimage.morphology import remove_small_objects

EIGHT_NEIGHBORS = np.ones((3, 3), dtype=int)
FRAGMENT_PX = 12
"""Side of the squares that cut a contour into fragments."""


def contour_fragments(
    contour: np.ndarray, cell_px: int, offset: tuple[int, int] = (0, 0)
) -> tuple[np.ndarray, int]:
    """Number the fragments of a contour ``(H, W)``: pieces that are connected within a square cell of a grid.

    The cells have a side of ``cell_px`` and the grid is shifted by ``offset`` pixels. Returns ``(H, W)`` int with 0 off
    the contour and 1 to ``n`` on it, and ``n``.
    """
    on = np.asarray(contour) != 0
    lines, _ = label(on, EIGHT_NEIGHBORS)
    rows, columns = np.nonzero(on)
    row_offset, column_offset = offset
    cell_rows = (rows + row_offset) // cell_px
    cell_columns = (columns + column_offset) // cell_px
    keys = np.stack([lines[on], cell_rows, cell_columns])
    pieces, numbers = np.unique(keys, axis=1, return_inverse=True)
    fragments = np.zeros(on.shape, dtype=np.int64)
    fragments[on] = numbers.ravel() + 1
    return fragments, pieces.shape[1]


def random_fragments(
    contour: np.ndarray, cell_px: int, random: Generator
) -> tuple[np.ndarray, int]:
    """[`contour_fragments`][] with a random offset."""
    row_offset = int(random.integers(cell_px))
    column_offset = int(random.integers(cell_px))
    return contour_fragments(contour, cell_px, (row_offset, column_offset))


def pixels_of(chosen: np.ndarray, fragments: np.ndarray) -> np.ndarray:
    """Pixels ``(H, W)`` bool of the fragments, numbered from 1 in ``fragments``, that ``chosen (n,)`` bool has."""
    by_number = np.append(False, chosen)
    return by_number[fragments]


def contour_with_faults(
    contour: np.ndarray,
    image: np.ndarray,
    random: Generator,
    *,
    sigma_px: float,
    high_threshold: float,
) -> np.ndarray:
    """Contour ``(H, W)`` bool with random faults of the kinds by which contours of CT differ from those of MR.

    Each with a probability of its own: short lines go, which are texture; fragments are lost, weak ones first; some get
    a second line beside them, as cortical bone has in CT; and some are repeated elsewhere in the body. How often was
    chosen and not fitted, so the result does not have the density of contours of CT.

    ``image (H, W)`` has gray levels, 0 for air; ``sigma_px`` and ``high_threshold`` are those of its contour.
    """
    image = np.asarray(image)
    on = np.asarray(contour) != 0
    if random.random() < 0.5:
        on = without_short_lines(on, random.uniform(4.0, 20.0))
    fragments, count = random_fragments(on, FRAGMENT_PX, random)
    if count == 0:
        return on
    smooth = gaussian_filter(image.astype(np.float64), sigma_px)
    row_gradient = sobel(smooth, 0) / 4
    column_gradient = sobel(smooth, 1) / 4
    steepness = np.hypot(row_gradient, column_gradient)
    numbers = np.arange(1, count + 1)
    strength = mean(steepness, fragments, numbers)
    lost = np.zeros(count, dtype=bool)
    if random.random() < 0.7:
        # the gradient at which half of the fragments are lost
        half = random.uniform(0.5, 1.0) * high_threshold
        width = 0.15 * high_threshold
        weakness = (strength - half) / width
        loss = 1 / (1 + np.exp(weakness))
        lost = random.random(count) < loss
    added = np.zeros_like(on)
    if random.random() < 0.5:
        row_slopes = mean(row_gradient, fragments, numbers)
        column_slopes = mean(column_gradient, fragments, numbers)
        slopes = np.stack([row_slopes, column_slopes])
        doubled = random.random(count) < random.uniform(0, 0.4)
        doubled &= np.hypot(*slopes) > 0.7 * strength  # straight, so that it has a direction
        distance = random.uniform(2.5, 5.0)
        side = random.choice((-1, 1))
        lines = second_lines(fragments, doubled, slopes, distance * side)
        added |= lines
    if random.random() < 0.5:
        repeated = random.random(count) < random.uniform(0, 0.1)
        pixels = pixels_of(repeated, fragments)
        clutter = moved(pixels, random)
        added |= clutter & (image > 0)
    kept = on & ~pixels_of(lost, fragments)
    return kept | added


def moved(contour: np.ndarray, random: Generator) -> np.ndarray:
    """Contour ``(H, W)``, shifted by a random number of pixels along both axes; what leaves the image comes back."""
    shift = random.integers(contour.shape)
    return np.roll(contour, shift, axis=(0, 1))


def without_short_lines(contour: np.ndarray, shortest_px: float) -> np.ndarray:
    """Contour ``(H, W)`` bool without connected lines of fewer than ``shortest_px`` pixels."""
    longest_removed = ceil(shortest_px) - 1
    return remove_small_objects(contour, max_size=longest_removed, connectivity=2)


def second_lines(
    fragments: np.ndarray, chosen: np.ndarray, slopes: np.ndarray, distance_px: float
) -> np.ndarray:
    """Lines ``(H, W)`` bool beside fragments, moved along their mean gradient.

    ``fragments``, ``chosen`` are as in [`pixels_of`][]; ``slopes (2, n)`` is the mean gradient of each. What leaves the
    image lies on its rim.
    """
    places = np.nonzero(pixels_of(chosen, fragments))
    numbers = fragments[places]
    slope = slopes[:, numbers - 1]
    steepness = np.hypot(*slope)
    steps = distance_px * slope / np.maximum(steepness, 1e-6)
    rows, columns = np.rint(places + steps).astype(int)
    height, width = fragments.shape
    rows = rows.clip(0, height - 1)
    columns = columns.clip(0, width - 1)
    lines = np.zeros(fragments.shape, dtype=bool)
    lines[rows, columns] = True
    return lines
