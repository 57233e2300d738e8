# SPDX-License-Identifier: Apache-2.0
"""Anatomy check without MR ground truth: did the translation follow the contour that it was given?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.config import NdarrayOrTensor

from contourdiff.metrics.contour_agreement import contour_agreement, near

FOUND, INVENTED, LOST = 1, 2, 3  # codes of the anatomy map


class SliceFidelity(NamedTuple):
    """How far the contour of a translated slice departs from the given one; the first three are shares in [0, 1]."""

    invented: float
    lost: float
    fidelity: float
    suspect: bool


@dataclass(frozen=True)
class VolumeFidelity:
    """What the check found in a volume: a verdict for each slice with a contour, and the map of codes ``(H, W, D)``."""

    slices: list[SliceFidelity | None]
    codes: np.ndarray

    @property
    def suspects(self) -> list[int]:
        """Positions of the slices below the limit."""
        return [index for index, verdict in enumerate(self.slices) if verdict is not None and verdict.suspect]

    @property
    def checked(self) -> int:
        """How many slices were compared: those with a given contour."""
        return sum(verdict is not None for verdict in self.slices)

    def summary(self) -> dict[str, Any]:
        """For the record: slices that were checked, those that are suspect, and the medians over all checked ones."""
        table = np.array([verdict[:3] for verdict in self.slices if verdict is not None])
        medians = [float(value) for value in np.median(table, axis=0)] if len(table) else [None] * 3
        names = [f"{name}_median" for name in SliceFidelity._fields[:3]]
        return {"checked": self.checked, "suspects": self.suspects} | dict(zip(names, medians, strict=True))

    def warning(self, most: int = 20) -> str:
        """One line that names the suspect slices, at most ``most`` of them."""
        named = ", ".join(map(str, self.suspects[:most])) + (", ..." if len(self.suspects) > most else "")
        return f"{len(self.suspects)} of {self.checked} slices below the anatomy limit (slices {named}): look at them"


class FlagRates(NamedTuple):
    """Share of a patient's own slices that pass, and share of swapped ones that are flagged."""

    passed: float
    flagged: float


def slice_fidelity(
    found: np.ndarray,
    given: np.ndarray,
    tolerance_mm: float,
    limit: float,
    spacing_mm: Sequence[float] = (1.0, 1.0),
) -> SliceFidelity:
    """Compare the contour of a translation with the contour that it was made from.

    ``invented`` is the share of ``found`` without a pixel of ``given`` within ``tolerance_mm``, ``lost`` the share of
    ``given`` without one of ``found``, ``fidelity`` the harmonic mean of what is left of both (boundary F1, see
    :func:`contourdiff.metrics.contour_agreement.contour_agreement`). The slice is ``suspect`` if its score is below ``limit``.

    Args:
        found: ``(H, W)``, nonzero on the translation's contour.
        given: ``(H, W)``, nonzero on the given contour.
        tolerance_mm: largest distance that counts as the same place.
        limit: score from which a slice passes.
        spacing_mm: size of a pixel along H and W.
    """
    precision, recall, score = contour_agreement(found, given, tolerance_mm, spacing=spacing_mm)
    invented = 1 - precision if np.any(found) else 0.0  # a blank translation loses everything, and invents nothing
    lost = 1 - recall if np.any(given) else 0.0
    return SliceFidelity(invented, lost, score, bool(score < limit))


def fidelity_codes(
    found: np.ndarray, given: np.ndarray, tolerance_mm: float, spacing_mm: Sequence[float] = (1.0, 1.0)
) -> np.ndarray:
    """Where two contours ``(H, W)`` meet and part: uint8 ``(H, W)``.

    1 given and found: a pixel of ``given`` with one of ``found`` within ``tolerance_mm``. 2 invented: a pixel of
    ``found`` with none of ``given``. 3 lost: a pixel of ``given`` with none of ``found``. 0 is all else.
    """
    found, given = np.asarray(found) != 0, np.asarray(given) != 0
    codes = np.where(given, LOST, 0).astype(np.uint8)
    codes[given & near(found, tolerance_mm, spacing_mm)] = FOUND
    codes[found & ~near(given, tolerance_mm, spacing_mm)] = INVENTED
    return codes


def flag_rates(own_scores: Sequence[float], swapped_scores: Sequence[float], limit: float) -> FlagRates:
    """How well a limit parts translations of their own contour from those held against another patient's.

    Args:
        own_scores: ``fidelity`` of slices against the contour that they were made from.
        swapped_scores: the same translations against the contour of another patient at a similar place.
        limit: score from which a slice passes.

    Raises:
        ValueError: if either has no scores.
    """
    own, swapped = np.asarray(own_scores, dtype=np.float64), np.asarray(swapped_scores, dtype=np.float64)
    if own.size == 0 or swapped.size == 0:
        raise ValueError(f"expected scores of own and of swapped slices, got {own.size} and {swapped.size}")
    return FlagRates(float((own >= limit).mean()), float((swapped < limit).mean()))


def best_limit(own_scores: Sequence[float], swapped_scores: Sequence[float]) -> float:
    """Limit with the highest sum of both :func:`flag_rates`; of a range that does equally well, its middle.

    Raises:
        ValueError: if either has no scores.
    """
    scores = np.unique([*own_scores, *swapped_scores])
    sums = [sum(flag_rates(own_scores, swapped_scores, limit)) for limit in scores]
    best = int(np.argmax(sums))
    return float((scores[max(best - 1, 0)] + scores[best]) / 2)  # between two scores every limit is the same


def centered_on(contour: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Shift ``contour (H, W)`` by whole pixels so that the middles of both bounding boxes meet: a fair swap.

    What leaves the image is lost; where either is empty, nothing is shifted.
    """
    contour, reference = np.asarray(contour).astype(bool), np.asarray(reference).astype(bool)
    height, width = reference.shape
    out = np.zeros((height, width), dtype=bool)
    rows, columns = np.nonzero(contour)
    shift = [0, 0]
    if contour.any() and reference.any():
        shift = [
            round((other.min() + other.max() - own.min() - own.max()) / 2)
            for own, other in zip((rows, columns), np.nonzero(reference), strict=True)
        ]
    rows, columns = rows + shift[0], columns + shift[1]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    out[rows[inside], columns[inside]] = True
    return out


def own_and_swapped_scores(
    found: Sequence[np.ndarray],
    given: Sequence[np.ndarray],
    partners: Sequence[np.ndarray],
    tolerance_mm: float,
    spacing_mm: Sequence[float] = (1.0, 1.0),
) -> tuple[list[float], list[float]]:
    """Scores of translations against their own contours, and against those of others: what a limit must part.

    Args:
        found: contours of the translations, each ``(H, W)``.
        given: for each the contour that it was made from, of the same shape.
        partners: for each the contour of another patient at a similar place, of any shape; :func:`centered_on` its own.
        tolerance_mm: see :func:`slice_fidelity`.
        spacing_mm: size of a pixel along H and W.
    """
    own, swapped = [], []
    for output, mine, other in zip(found, given, partners, strict=True):
        own.append(slice_fidelity(output, mine, tolerance_mm, 0.0, spacing_mm).fidelity)
        moved = centered_on(other, mine)
        swapped.append(slice_fidelity(output, moved, tolerance_mm, 0.0, spacing_mm).fidelity)
    return own, swapped


class ContourFidelityCheck:
    """Compare a translated volume with the contours that it was made from, slice by slice.

    Args:
        contour: ``(1, H, W, D)`` gray levels in [0, 255] -> contour of that shape, with the knobs of the given one.
        tolerance_mm: see :func:`slice_fidelity`.
        limit: see :func:`slice_fidelity`.
        slice_axis: spatial axis along which the slices are stacked.

    Raises:
        ValueError: if ``tolerance_mm`` is negative or ``limit`` is not in [0, 1].
    """

    def __init__(
        self,
        contour: Callable[[NdarrayOrTensor], NdarrayOrTensor],
        tolerance_mm: float,
        limit: float,
        slice_axis: int = 0,
    ) -> None:
        if not tolerance_mm >= 0 or not 0 <= limit <= 1:
            raise ValueError(
                "expected fidelity_tolerance_mm of 0 or more and fidelity_limit in [0, 1], "
                f"got {tolerance_mm} and {limit}; a limit of 0 flags nothing"
            )
        self.contour = contour
        self.tolerance_mm = tolerance_mm
        self.limit = limit
        self.slice_axis = slice_axis

    def __call__(
        self,
        contours: torch.Tensor,
        translation: torch.Tensor,
        spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
        box: tuple[slice, slice, slice] | None = None,
    ) -> VolumeFidelity:
        """Check one volume.

        Args:
            contours: ``(H, W, D)``, the contours given.
            translation: ``(H, W, D)`` gray levels in [0, 255].
            spacing_mm: size of a voxel along H, W and D.
            box: what the network saw, with every given contour in it. Its border, where gray levels drop to 0, is no
                contour; ``None`` takes the whole volume.
        """
        axis = self.slice_axis
        seen = (slice(None), slice(None), slice(None)) if box is None else box
        in_plane = [float(size) for other, size in enumerate(spacing_mm) if other != axis]
        edges = np.zeros(np.shape(translation), dtype=bool)
        edges[seen] = np.asarray(self.contour(np.asarray(translation)[seen][None]))[0] != 0
        given, found = (np.moveaxis(volume, axis, 0) for volume in (np.asarray(contours) != 0, edges))
        codes = np.zeros(np.shape(contours), dtype=np.uint8)
        verdicts: list[SliceFidelity | None] = [None] * len(given)
        for index in np.flatnonzero(given.any(axis=(1, 2))):
            pair = (found[index], given[index], self.tolerance_mm)
            verdicts[index] = slice_fidelity(*pair, self.limit, in_plane)
            np.moveaxis(codes, axis, 0)[index] = fidelity_codes(*pair, in_plane)
        return VolumeFidelity(verdicts, codes)
