# SPDX-License-Identifier: Apache-2.0
"""How much a translation changes from slice to slice, and beside what that is much or little."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from contourdiff.inference.volume_state import VolumeResult


def flicker_of(
    record: VolumeResult, slice_axis: int = 0, reference_flicker: float | None = None
) -> dict[str, float | int | None]:
    """Flicker of one translated volume on the model's grid.

    Args:
        record: what the inferer told of the volume.
        slice_axis: axis along which its slices are stacked.
        reference_flicker: flicker of real MR of that kind, its slices as far apart as the CT's; gray levels squared.

    Returns:
        ``flicker``, the mean squared difference of adjacent translated slices in gray levels squared, and the number
        of ``pairs``; ``contour_change``, the mean share of pixels in which the contours of such slices differ;
        ``of_single_candidates``, the flicker that first candidates without selection would have had;
        ``of_reference`` as given; and the ratios ``to_contour_change`` (gray levels squared), ``to_single_candidates``
        and ``to_reference``. What cannot be told is ``None``.
    """
    compared = [choice for choice in record.choices if choice is not None and choice.neighbor is not None]
    value = _mean([choice.neighbor_distance for choice in compared])
    box = [record.box[axis] for axis in range(3)]
    contours = np.moveaxis(np.asarray(record.contours)[tuple(box)], slice_axis, 0) > 0
    change = _mean([float((contours[c.slice_index] != contours[c.neighbor]).mean()) for c in compared])
    single = _mean(record.single_distances or [])
    return {
        "flicker": value,
        "pairs": len(compared),
        "contour_change": change,
        "of_single_candidates": single,
        "of_reference": reference_flicker,
        "to_contour_change": _ratio(value, change),
        "to_single_candidates": _ratio(value, single),
        "to_reference": _ratio(value, reference_flicker),
    }


def flicker_line(flicker: dict[str, float | int | None]) -> str:
    """One line for a log: ``flicker 812 gray levels^2, 0.71 of single candidates'``."""
    if flicker["flicker"] is None:
        return "flicker unknown, no two adjacent slices"
    told = [f"flicker {flicker['flicker']:.0f} gray levels^2"]
    names = {"to_single_candidates": "of single candidates'", "to_reference": "of the reference's"}
    told += [f"{flicker[key]:.2f} {name}" for key, name in names.items() if flicker[key] is not None]
    return ", ".join(told)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _ratio(value: float | None, other: float | None) -> float | None:
    return value / other if value is not None and other else None
