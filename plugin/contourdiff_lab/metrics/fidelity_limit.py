# SPDX-License-Identifier: Apache-2.0
"""Find the limit of contour fidelity: it must separate translations of a contour from those of another patient's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from contourdiff.metrics.contour_fidelity import slice_fidelity

Contours = Sequence[np.ndarray]


class FlagRates(NamedTuple):
    """Share of a patient's own slices that pass, and share of swapped ones that are flagged."""

    passed: float
    flagged: float


def flag_rates(own: Sequence[float], swapped: Sequence[float], limit: float) -> FlagRates:
    """How well a limit separates own fidelities from those to another patient's; ``ValueError`` if either is empty."""
    if not len(own) or not len(swapped):
        raise ValueError(
            f"expected scores of own and of swapped slices, got {len(own)} and {len(swapped)}"
        )
    passed = np.asarray(own) >= limit
    flagged = np.asarray(swapped) < limit
    return FlagRates(float(passed.mean()), float(flagged.mean()))


def best_limit(own: Sequence[float], swapped: Sequence[float]) -> float:
    """Limit with the highest sum of both [`flag_rates`][]; of a range that does equally well, its middle."""
    scores = np.unique([*own, *swapped])
    sums = [sum(flag_rates(own, swapped, limit)) for limit in scores]
    best = int(np.argmax(sums))
    below = max(best - 1, 0)  # between two adjacent scores every limit does the same
    return float((scores[below] + scores[best]) / 2)


def centered_on(contour: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Shift ``contour (H, W)`` by whole pixels so that the middles of both bounding boxes meet: a fair swap.

    What leaves the image is lost; where either is empty, nothing is shifted. Returns bool, as large as ``reference``.
    """
    places = np.stack(np.nonzero(contour))
    target = np.stack(np.nonzero(reference))
    if places.size and target.size:
        doubled_shift = target.min(1) + target.max(1) - places.min(1) - places.max(1)
        places += np.rint(doubled_shift / 2).astype(np.int64)[:, None]
    shape = np.shape(reference)
    inside = ((places >= 0) & (places < np.array(shape)[:, None])).all(axis=0)
    shifted = np.zeros(shape, dtype=bool)
    shifted[tuple(places[:, inside])] = True
    return shifted


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
        tolerance_mm: see [`contourdiff.metrics.contour_fidelity.slice_fidelity`][].
        spacing_mm: size of a pixel along H and W.
    """
    own = []
    swapped = []
    for contour, source, partner in zip(translated, sources, partners, strict=True):
        moved = centered_on(partner, source)
        own.append(slice_fidelity(contour, source, tolerance_mm, 0.0, spacing_mm).fidelity)
        swapped.append(slice_fidelity(contour, moved, tolerance_mm, 0.0, spacing_mm).fidelity)
    return own, swapped
