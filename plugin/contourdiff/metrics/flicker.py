# SPDX-License-Identifier: Apache-2.0
"""Flicker: how much a volume changes from slice to slice, with one definition for translations and real MR."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

Box = tuple[slice, slice]


class Flicker(NamedTuple):
    """Flicker in gray levels squared, its number of slice pairs, and the mean share of contour pixels that differ."""

    value: float | None
    pairs: int
    contour_change: float | None


def contour_box(contours: Any, margin_px: int) -> Box:
    """Rows and columns of the box around all contours ``(N, H, W)`` with a margin; the whole slice without any."""
    present = torch.as_tensor(contours != 0).any(0).cpu().numpy()
    bounds = []
    for lines in (np.any(present, axis=1), np.any(present, axis=0)):
        filled = np.flatnonzero(lines) if lines.any() else [0, len(lines) - 1]
        bounds.append(
            slice(
                max(int(filled[0]) - margin_px, 0), min(int(filled[-1]) + margin_px + 1, len(lines))
            )
        )
    return bounds[0], bounds[1]


def flicker(gray_levels: np.ndarray, contours: np.ndarray, box: Box) -> Flicker:
    """Mean squared difference of adjacent slices in a [`contour_box`][], over pairs of slices with a contour.

    ``gray_levels``, in [0, 255], and ``contours``, nonzero on the contour, are ``(N, H, W)``, slices first. Anatomy
    changes from slice to slice too: compare volumes of one field of view and slice distance.

    Raises ``ValueError`` if the shapes differ or are not three-dimensional, or gray levels are not finite.
    """
    gray_levels, contours = np.asarray(gray_levels, dtype=np.float64), np.asarray(contours) != 0
    if (
        gray_levels.ndim != 3
        or gray_levels.shape != contours.shape
        or not np.isfinite(gray_levels).all()
    ):
        shapes = f"{gray_levels.shape} and {contours.shape}"
        raise ValueError(
            f"expected finite gray levels and contours (N, H, W) of one shape, got {shapes}; slices first"
        )
    filled = np.any(contours, axis=(1, 2))
    pairs = np.flatnonzero(filled[:-1] & filled[1:])
    images, edges = gray_levels[:, box[0], box[1]], contours[:, box[0], box[1]]
    changes = [np.square(images[i + 1] - images[i]).mean() for i in pairs]
    return Flicker(
        _mean(changes), len(pairs), _mean([(edges[i + 1] != edges[i]).mean() for i in pairs])
    )


def flicker_record(
    measured: Flicker,
    single_distances: Sequence[float | None] | None = None,
    reference_flicker: float | None = None,
) -> dict[str, float | int | None]:
    """Flicker of a translation beside what it compares with, for the record of a run; ``None`` where unknown.

    Args:
        measured: flicker of the translation on the model's grid.
        single_distances: for each slice, the change that first candidates without selection have there.
        reference_flicker: flicker of real MR of that kind, its slices as far apart as the CT's.

    Returns:
        ``flicker``, ``pairs`` and ``contour_change`` of the translation; ``of_single_candidates``, ``of_reference``;
        and the ratios ``to_contour_change`` (gray levels squared), ``to_single_candidates`` and ``to_reference``.
    """
    single = _mean([value for value in single_distances or [] if value is not None])
    value, pairs, change = measured
    others = {
        "contour_change": change,
        "of_single_candidates": single,
        "of_reference": reference_flicker,
    }
    factors = [value / other if value is not None and other else None for other in others.values()]
    ratios = zip(
        ("to_contour_change", "to_single_candidates", "to_reference"), factors, strict=True
    )
    return {"flicker": value, "pairs": pairs, **others, **dict(ratios)}


def flicker_line(record: dict[str, float | int | None]) -> str:
    """One line for a log: ``flicker 812 gray levels^2, 0.71 of single candidates'``."""
    if record["flicker"] is None:
        return "flicker unknown, no two adjacent slices"
    names = {"to_single_candidates": "of single candidates'", "to_reference": "of the reference's"}
    ratios = [f"{record[key]:.2f} {name}" for key, name in names.items() if record[key] is not None]
    return ", ".join([f"flicker {record['flicker']:.0f} gray levels^2", *ratios])


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None
