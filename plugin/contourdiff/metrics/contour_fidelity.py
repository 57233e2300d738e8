# SPDX-License-Identifier: Apache-2.0
"""Contour fidelity without MR ground truth: does a translation follow its contour?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.config import NdarrayOrTensor
from scipy.ndimage import binary_dilation, distance_transform_edt

from contourdiff.limits import check_number

FOLLOWED, INVENTED, LOST = 1, 2, 3
"""Codes of the fidelity map."""
LARGEST_DISC_PX = 16
"""Radius up to which a contour is dilated; beyond, its distance transform is faster."""


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
        positions = []
        for index, verdict in enumerate(self.slices):
            if verdict is not None and verdict.suspect:
                positions.append(index)
        return positions

    @property
    def checked(self) -> int:
        """Number of slices that were compared: those with a given contour."""
        return len(self.slices) - self.slices.count(None)

    def summary(self) -> dict[str, Any]:
        """Number of checked slices, the suspect ones, and the medians over all, for the record."""
        shares = [verdict[:3] for verdict in self.slices if verdict is not None]
        medians = [None, None, None]
        if shares:
            medians = np.median(shares, axis=0).tolist()
        return {
            "checked": self.checked,
            "suspects": self.suspects,
            "invented_median": medians[0],
            "lost_median": medians[1],
            "fidelity_median": medians[2],
        }

    def warning(self, most: int = 20) -> str:
        """One line that names the suspect slices, at most ``most`` of them."""
        suspects = self.suspects
        names = ", ".join(str(index) for index in suspects[:most])
        if len(suspects) > most:
            names += ", ..."
        share = f"{len(suspects)} of {self.checked} slices below the fidelity limit"
        return f"{share} (slices {names}): look at them"


def slice_fidelity(codes: np.ndarray, contour: np.ndarray, limit: float) -> SliceFidelity:
    """The shares of a translated slice from its [`fidelity_codes`][] and its ``contour``, ``(H, W)`` each.

    ``invented`` is the share of ``contour`` without a pixel of the reference nearby, ``lost`` the reverse, ``fidelity``
    their boundary F1: the harmonic mean of precision and recall. A slice below ``limit`` is ``suspect``.
    """
    points = int(np.count_nonzero(contour))
    invented_points = int(np.count_nonzero(codes == INVENTED))
    lost_points = int(np.count_nonzero(codes == LOST))
    followed_points = int(np.count_nonzero(codes == FOLLOWED))
    reference_points = lost_points + followed_points
    # a blank translation loses everything, and invents nothing
    precision = float(not reference_points)
    invented = lost = 0.0
    if points:
        precision = (points - invented_points) / points
        invented = 1 - precision
    recall = float(not points)
    if reference_points:
        recall = followed_points / reference_points
        lost = 1 - recall
    f1 = 2 * precision * recall / ((precision + recall) or 1)
    return SliceFidelity(invented, lost, f1, f1 < limit)


def near(contour: np.ndarray, tolerance_mm: float, spacing_mm: Sequence[float]) -> np.ndarray:
    """Pixels at most ``tolerance_mm`` from a contour: bool ``(H, W)`` -> the same; none where there is no contour.

    ``spacing_mm`` is the size of a pixel along H and W. The tolerance grows by one millionth, for a header holds
    float32.
    """
    if not contour.any():
        return np.zeros(contour.shape, dtype=bool)
    reach = tolerance_mm * (1 + 1e-6)
    height, width = spacing_mm
    if reach > LARGEST_DISC_PX * min(height, width):
        distances = distance_transform_edt(~contour, sampling=spacing_mm)
        return distances <= reach
    rows = height * _offsets(reach / height)
    columns = width * _offsets(reach / width)
    disc = np.hypot(rows[:, None], columns) <= reach
    return binary_dilation(contour, disc)


def _offsets(reach_px: float) -> np.ndarray:
    """Whole numbers up to ``reach_px``, of both signs."""
    last = int(reach_px)
    return np.arange(-last, last + 1)


def fidelity_codes(
    contour: np.ndarray,
    reference: np.ndarray,
    tolerance_mm: float,
    spacing_mm: Sequence[float] = (1.0, 1.0),
) -> np.ndarray:
    """Where the ``contour`` of a translation and the ``reference`` that it was made from differ: uint8 ``(H, W)``.

    1 is a pixel of ``reference`` with one of ``contour`` within ``tolerance_mm``, 2 (invented) a pixel of ``contour``
    with none of ``reference``, 3 (lost) a pixel of ``reference`` with none of ``contour``, 0 all else. Both are
    ``(H, W)``, nonzero on the contour; ``spacing_mm`` is the size of a pixel along H and W.
    """
    points = np.asarray(contour) != 0
    reference_points = np.asarray(reference) != 0
    codes = np.zeros(points.shape, dtype=np.uint8)
    codes[reference_points] = LOST
    codes[reference_points & near(points, tolerance_mm, spacing_mm)] = FOLLOWED
    codes[points & ~near(reference_points, tolerance_mm, spacing_mm)] = INVENTED
    return codes


@dataclass(eq=False)
class ContourFidelityCheck:
    """Compare a translated volume with the contours that it was made from, slice by slice.

    ``contour`` maps gray levels ``(1, H, W, D)`` in [0, 255] to a contour of that shape, with the given one's settings.
    For tolerance, 0 or more, see [`fidelity_codes`][], for the limit, 0 to 1, [`slice_fidelity`][]; ``ValueError`` for
    others.
    """

    contour: Callable[[NdarrayOrTensor], NdarrayOrTensor]
    tolerance_mm: float
    limit: float
    slice_axis: int = 0

    def __post_init__(self) -> None:
        check_number("fidelity_tolerance_mm", self.tolerance_mm, 0)
        check_number("fidelity_limit", self.limit, 0, 1)

    def __call__(
        self,
        contours: torch.Tensor,
        gray_levels: torch.Tensor,
        spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
        box: tuple[slice, slice, slice] | None = None,
    ) -> VolumeFidelity:
        """Check the translation ``gray_levels (H, W, D)`` in [0, 255] of the given ``contours (H, W, D)``.

        ``spacing_mm`` is along H, W and D. ``box`` is what the network saw (``None``: the whole volume), with every
        given contour in it; its border, where gray levels drop to 0, is no contour.
        """
        seen = box or (slice(None), slice(None), slice(None))
        in_plane = [float(size) for size in spacing_mm]
        del in_plane[self.slice_axis]
        image = np.asarray(gray_levels)
        edges = np.zeros(image.shape, dtype=bool)
        contour = np.asarray(self.contour(image[seen][None]))
        edges[seen] = contour[0] != 0
        translated = np.moveaxis(edges, self.slice_axis, 0)
        has_contour = np.asarray(contours) != 0
        references = np.moveaxis(has_contour, self.slice_axis, 0)
        codes = np.zeros(has_contour.shape, dtype=np.uint8)
        code_slices = np.moveaxis(codes, self.slice_axis, 0)
        verdicts: list[SliceFidelity | None] = [None] * len(references)
        for index in np.flatnonzero(references.any(axis=(1, 2))):
            contour = translated[index]
            slice_codes = fidelity_codes(contour, references[index], self.tolerance_mm, in_plane)
            verdicts[index] = slice_fidelity(slice_codes, contour, self.limit)
            code_slices[index] = slice_codes
        return VolumeFidelity(verdicts, codes)
