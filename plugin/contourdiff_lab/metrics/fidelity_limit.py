# SPDX-License-Identifier: Apache-2.0
"""Find the limit of contour fidelity: it must separate translations of a contour from those of another patient's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from contourdiff.metrics.contour_fidelity import fidelity_codes, slice_fidelity

Contours = Sequence[np.ndarray]
Scores = Sequence[float]


class FlagRates(NamedTuple):
    """Share of a patient's own slices that pass, and share of swapped ones that are flagged."""

    passed: float
    flagged: float


def flag_rates(own: Scores, swapped: Scores, limit: float) -> FlagRates:
    """How well a limit separates own fidelities from those to another patient's; ``ValueError`` if either is empty."""
    if not len(own) or not len(swapped):
        raise ValueError(
            f"expected scores of own and of swapped slices, got {len(own)} and {len(swapped)}"
        )
    return FlagRates(
        passed=float(np.mean(np.asarray(own) >= limit)),
        flagged=float(np.mean(np.asarray(swapped) < limit)),
    )


def best_limit(own: Scores, swapped: Scores) -> float:
    """Limit with the highest sum of both [`flag_rates`][]; of a range that does equally well, its middle."""
    scores = np.unique([*own, *swapped])
    sums = []
    for limit in scores:
        rates = flag_rates(own, swapped, limit)
        sums.append(rates.passed + rates.flagged)
    best = int(np.argmax(sums))
    below = max(best - 1, 0)  # between two adjacent scores every limit does the same
    middle = (scores[below] + scores[best]) / 2
    return float(middle)


def centered_on(contour: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Shift ``contour (H, W)`` by whole pixels so that the middles of both bounding boxes meet: a fair swap.

    What leaves the image is lost; where either is empty, nothing is shifted. Returns bool, as large as ``reference``.
    """
    places = np.argwhere(np.asarray(contour)).T
    targets = np.argwhere(np.asarray(reference)).T
    height, width = np.shape(reference)
    shifted = np.zeros((height, width), dtype=bool)
    if places.size and targets.size:
        middle = _middle_of_box(places)
        target = _middle_of_box(targets)
        shift = np.rint(target - middle)
        places += shift.astype(np.int64)[:, None]
    for row, column in places.T:
        if 0 <= row < height and 0 <= column < width:
            shifted[row, column] = True
    return shifted


def _middle_of_box(places: np.ndarray) -> np.ndarray:
    return (places.min(1) + places.max(1)) / 2


def own_and_swapped_scores(
    translated: Contours,
    sources: Contours,
    partners: Contours,
    tolerance_mm: float,
    spacing_mm: Sequence[float] = (1.0, 1.0),
) -> tuple[list[float], list[float]]:
    """Fidelities of translations to their own contours, and to those of others: what a limit must separate.

    Args:
        translated: contours of translations, ``(H, W)`` each.
        sources: the contours that they were made from.
        partners: contours of another patient at a similar place, of any shape; they are [`centered_on`][] the sources.
        tolerance_mm: see [`contourdiff.metrics.contour_fidelity.fidelity_codes`][].
        spacing_mm: size of a pixel along H and W.
    """
    own = []
    swapped = []
    for contour, source, partner in zip(translated, sources, partners, strict=True):
        to_source = _fidelity(contour, source, tolerance_mm, spacing_mm)
        moved = centered_on(partner, source)
        to_partner = _fidelity(contour, moved, tolerance_mm, spacing_mm)
        own.append(to_source)
        swapped.append(to_partner)
    return own, swapped


def _fidelity(
    contour: np.ndarray, reference: np.ndarray, tolerance_mm: float, spacing_mm: Sequence[float]
) -> float:
    codes = fidelity_codes(contour, reference, tolerance_mm, spacing_mm)
    return slice_fidelity(codes, contour, 0.0).fidelity
