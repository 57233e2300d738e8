# SPDX-License-Identifier: Apache-2.0
"""Contour fidelity without MR ground truth: does a translation follow its contour?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.config import NdarrayOrTensor

from contourdiff.metrics.contour_agreement import contour_agreement, near

FOUND, INVENTED, LOST = 1, 2, 3  # codes of the fidelity map
Contours = Sequence[np.ndarray]
WHOLE = (slice(None), slice(None), slice(None))


class SliceFidelity(NamedTuple):
    """How far the contour of a translated slice departs from the given one; the first three are shares in [0, 1]."""

    invented: float
    lost: float
    fidelity: float
    suspect: bool


@dataclass(frozen=True)
class VolumeFidelity:
    """The check of a volume: a verdict for each slice with a contour, and the map of codes ``(H, W, D)``."""

    slices: list[SliceFidelity | None]
    codes: np.ndarray

    @property
    def suspects(self) -> list[int]:
        """Positions of the slices below the limit."""
        return [
            index
            for index, verdict in enumerate(self.slices)
            if verdict is not None and verdict.suspect
        ]

    @property
    def checked(self) -> int:
        """Number of slices that were compared: those with a given contour."""
        return sum(verdict is not None for verdict in self.slices)

    def summary(self) -> dict[str, Any]:
        """Number of checked slices, the suspect ones, and the medians over all checked slices, for the record."""
        table = [verdict[:3] for verdict in self.slices if verdict is not None]
        medians = np.median(table, axis=0).tolist() if table else [None] * 3
        named = zip(("invented_median", "lost_median", "fidelity_median"), medians, strict=True)
        return {"checked": self.checked, "suspects": self.suspects, **dict(named)}

    def warning(self, most: int = 20) -> str:
        """One line that names the suspect slices, at most ``most`` of them."""
        named = ", ".join(map(str, self.suspects[:most])) + (
            ", ..." if len(self.suspects) > most else ""
        )
        return f"{len(self.suspects)} of {self.checked} slices below the fidelity limit (slices {named}): look at them"


def slice_fidelity(
    found: np.ndarray,
    given: np.ndarray,
    tolerance_mm: float,
    limit: float,
    spacing_mm: Sequence[float] = (1.0, 1.0),
) -> SliceFidelity:
    """Compare the contour ``found`` in a translation with the ``given`` one that it was made from, ``(H, W)`` each.

    ``invented`` is the share of ``found`` without a pixel of ``given`` within ``tolerance_mm``, ``lost`` the reverse,
    ``fidelity`` their boundary F1, see [`contourdiff.metrics.contour_agreement.contour_agreement`][]. A slice below
    ``limit`` is ``suspect``. ``spacing_mm`` is the size of a pixel along H and W.
    """
    precision, recall, fidelity = contour_agreement(found, given, tolerance_mm, spacing=spacing_mm)
    invented = (
        1 - precision if np.any(found) else 0.0
    )  # a blank translation loses everything, and invents nothing
    lost = 1 - recall if np.any(given) else 0.0
    return SliceFidelity(invented, lost, fidelity, bool(fidelity < limit))


def fidelity_codes(
    found: np.ndarray,
    given: np.ndarray,
    tolerance_mm: float,
    spacing_mm: Sequence[float] = (1.0, 1.0),
) -> np.ndarray:
    """Where two contours ``(H, W)`` agree and differ: uint8 ``(H, W)``.

    1 is a pixel of ``given`` with one of ``found`` within ``tolerance_mm``, 2 (invented) a pixel of ``found`` with none
    of ``given``, 3 (lost) a pixel of ``given`` with none of ``found``, 0 all else.
    """
    found, given = np.asarray(found) != 0, np.asarray(given) != 0
    codes = np.where(given, LOST, 0).astype(np.uint8)
    codes[given & near(found, tolerance_mm, spacing_mm)] = FOUND
    codes[found & ~near(given, tolerance_mm, spacing_mm)] = INVENTED
    return codes


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
    return FlagRates(
        float(np.mean(np.asarray(own) >= limit)), float(np.mean(np.asarray(swapped) < limit))
    )


def best_limit(own: Sequence[float], swapped: Sequence[float]) -> float:
    """Limit with the highest sum of both [`flag_rates`][]; of a range that does equally well, its middle."""
    scores = np.unique([*own, *swapped])
    best = int(np.argmax([sum(flag_rates(own, swapped, limit)) for limit in scores]))
    return float(
        (scores[max(best - 1, 0)] + scores[best]) / 2
    )  # between two scores every limit is the same


def centered_on(contour: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Shift ``contour (H, W)`` by whole pixels so that the middles of both bounding boxes meet: a fair swap.

    What leaves the image is lost; where either is empty, nothing is shifted.
    """
    contour, reference = np.asarray(contour) != 0, np.asarray(reference) != 0
    places = np.stack(np.nonzero(contour))
    if contour.any() and reference.any():
        for own, other in zip(places, np.nonzero(reference), strict=True):
            own += round((other.min() + other.max() - own.min() - own.max()) / 2)
    inside = ((places >= 0) & (places < np.array(reference.shape)[:, None])).all(axis=0)
    out = np.zeros(reference.shape, dtype=bool)
    out[tuple(places[:, inside])] = True
    return out


def own_and_swapped_scores(
    found: Contours,
    given: Contours,
    partners: Contours,
    tolerance_mm: float,
    spacing_mm: Sequence[float] = (1.0, 1.0),
) -> tuple[list[float], list[float]]:
    """Fidelities of translations to their own contours, and to those of others: what a limit must separate.

    ``found`` are contours ``(H, W)`` of translations, ``given`` those that they were made from, ``partners`` those of
    another patient at a similar place, of any shape, here [`centered_on`][] the own ones.
    """

    def scores(others: Iterable[np.ndarray]) -> list[float]:
        pairs = zip(found, others, strict=True)
        return [slice_fidelity(*pair, tolerance_mm, 0.0, spacing_mm).fidelity for pair in pairs]

    return scores(given), scores(
        centered_on(other, own) for other, own in zip(partners, given, strict=True)
    )


@dataclass(eq=False)
class ContourFidelityCheck:
    """Compare a translated volume with the contours that it was made from, slice by slice.

    ``contour`` maps gray levels ``(1, H, W, D)`` in [0, 255] to a contour of that shape, with the given one's settings.
    For tolerance and limit see [`slice_fidelity`][]; slices are stacked along the spatial axis ``slice_axis``.

    Raises ``ValueError`` if ``tolerance_mm`` is negative or ``limit`` is not in [0, 1].
    """

    contour: Callable[[NdarrayOrTensor], NdarrayOrTensor]
    tolerance_mm: float
    limit: float
    slice_axis: int = 0

    def __post_init__(self) -> None:
        if not self.tolerance_mm >= 0 or not 0 <= self.limit <= 1:
            got = f"{self.tolerance_mm} and {self.limit}; a limit of 0 flags nothing"
            raise ValueError(
                f"expected fidelity_tolerance_mm of 0 or more and fidelity_limit in [0, 1], got {got}"
            )

    def __call__(
        self,
        contours: torch.Tensor,
        gray_levels: torch.Tensor,
        spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
        box: tuple[slice, slice, slice] | None = None,
    ) -> VolumeFidelity:
        """Check the translation ``gray_levels (H, W, D)`` in [0, 255] of the given ``contours (H, W, D)``.

        ``spacing_mm`` is the size of a voxel along H, W and D. ``box`` is what the network saw (``None``: the whole
        volume), with every given contour in it; its border, where gray levels drop to 0, is no contour.
        """
        axis, seen = self.slice_axis, WHOLE if box is None else box
        in_plane = [float(size) for other, size in enumerate(spacing_mm) if other != axis]
        edges = np.zeros(np.shape(gray_levels), dtype=bool)
        edges[seen] = np.asarray(self.contour(np.asarray(gray_levels)[seen][None]))[0] != 0
        given, found = (
            np.moveaxis(volume, axis, 0) for volume in (np.asarray(contours) != 0, edges)
        )
        codes = np.zeros(np.shape(contours), dtype=np.uint8)
        verdicts: list[SliceFidelity | None] = [None] * len(given)
        for index in np.flatnonzero(given.any(axis=(1, 2))):
            pair = (found[index], given[index], self.tolerance_mm)
            verdicts[index] = slice_fidelity(*pair, self.limit, in_plane)
            np.moveaxis(codes, axis, 0)[index] = fidelity_codes(*pair, in_plane)
        return VolumeFidelity(verdicts, codes)
