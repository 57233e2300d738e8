# SPDX-License-Identifier: Apache-2.0
"""Flicker: how much a volume changes from slice to slice, with one definition for translations and real MR."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Flicker(NamedTuple):
    """Flicker in gray levels squared, its number of slice pairs, and the mean share of contour pixels that differ."""

    value: float | None
    pairs: int
    contour_change: float | None


def flicker(gray_levels: np.ndarray, contours: np.ndarray, box: tuple[slice, slice]) -> Flicker:
    """Mean squared difference of adjacent slices, over pairs of slices with a contour.

    ``gray_levels``, in [0, 255], and ``contours``, nonzero on the contour, are ``(N, H, W)``, slices first; ``box`` has
    the rows and columns that count. Anatomy changes from slice to slice too: compare volumes of one field of view and
    slice distance. Raises ``ValueError`` for other shapes, or gray levels that are not finite.
    """
    images = np.asarray(gray_levels, dtype=np.float64)
    edges = np.asarray(contours) != 0
    has_shape = images.ndim == 3 and images.shape == edges.shape
    if not has_shape or not np.isfinite(images).all():
        shapes = f"{images.shape} and {edges.shape}"
        raise ValueError(
            f"expected finite gray levels and contours (N, H, W) of one shape, got {shapes}; slices first"
        )
    filled = edges.any(axis=(1, 2))
    pairs = np.flatnonzero(filled[:-1] & filled[1:])
    rows, columns = box
    changes = []
    contour_changes = []
    for index in pairs:
        image, next_image = images[index : index + 2, rows, columns]
        difference = next_image - image
        changes.append(np.square(difference).mean())
        contour, next_contour = edges[index : index + 2, rows, columns]
        contour_changes.append((next_contour != contour).mean())
    return Flicker(_mean(changes), len(pairs), _mean(contour_changes))


def flicker_record(
    measured: Flicker,
    single_distances: Sequence[float | None] | None = None,
    reference_flicker: float | None = None,
) -> dict[str, float | int | None]:
    """Flicker of a translation beside what it compares with, for the record of a run; ``None`` where unknown.

    ``single_distances`` has, for each slice, the change of first candidates without selection; ``reference_flicker``
    is of real MR of that kind, its slices as far apart as the CT's.
    """
    single = _mean([value for value in single_distances or [] if value is not None])
    return {
        "flicker": measured.value,
        "pairs": measured.pairs,
        "contour_change": measured.contour_change,
        "of_single_candidates": single,
        "of_reference": reference_flicker,
        "to_contour_change": _ratio(measured.value, measured.contour_change),
        "to_single_candidates": _ratio(measured.value, single),
        "to_reference": _ratio(measured.value, reference_flicker),
    }


def flicker_line(record: dict[str, float | int | None]) -> str:
    """One line for a log: ``flicker 812 gray levels^2, 0.71 of single candidates'``."""
    if record["flicker"] is None:
        return "flicker unknown, no two adjacent slices"
    line = f"flicker {record['flicker']:.0f} gray levels^2"
    if record["to_single_candidates"] is not None:
        line += f", {record['to_single_candidates']:.2f} of single candidates'"
    if record["to_reference"] is not None:
        line += f", {record['to_reference']:.2f} of the reference's"
    return line


def _mean(values: Sequence[float]) -> float | None:
    if not values:
        return None
    return float(np.mean(values))


def _ratio(value: float | None, reference: float | None) -> float | None:
    if value is None or not reference:
        return None
    return value / reference
