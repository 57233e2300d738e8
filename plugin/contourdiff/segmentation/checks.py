# SPDX-License-Identifier: Apache-2.0
"""Check CT and MR before the work of a transfer starts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes

from contourdiff.data.checks import CT_MINIMUM_HU, check_volume
from contourdiff.data.volumes import open_volume, release_voxels

CONTRASTS = ("t1", "t2", "pd", "flair", "stir", "dixon", "dwi")
CONTRAST = re.compile(rf"(?<![a-z0-9])({'|'.join(CONTRASTS)})(?![0-9])", re.IGNORECASE)
"""A contrast in the name of a file, such as ``anna_T2w``."""
DIRECTIONS = ("from left to right", "from front to back", "from foot to head")
SMALLER = 0.5
"""Share of the field of view of the MR below which that of the CT is called small."""


def check_mr(files: Mapping[str, Path]) -> list[str]:
    """Read every MR, by case; returns warnings about all of them.

    Raises ``ValueError`` for a file that cannot be read, that is CT, or that has one gray level.
    """
    single_slices = []
    for case, path in files.items():
        voxels = check_volume(path)
        low, high = float(voxels.min()), float(voxels.max())
        release_voxels([path])
        if low <= CT_MINIMUM_HU:
            raise ValueError(
                f"expected MR, got {path.name} with voxels down to {low:g}, which is probably CT in Hounsfield units; "
                "pass labelled CT first, then unlabelled MR"
            )
        if low == high:
            raise ValueError(
                f"expected MR, got {path.name} with the value {low:g} in every voxel; leave it out"
            )
        if min(voxels.shape) == 1:
            single_slices.append(case)
    warnings = []
    if single_slices:
        warnings.append(
            f"{len(single_slices)} MR are single slices, such as {single_slices[0]}: volumes and counts mean little"
        )
    contrasts = contrasts_in(files)
    if len(contrasts) > 1:
        warnings.append(
            f"the names of the MR contain {' and '.join(contrasts)}: one network learns all contrasts, and the report "
            "mixes them; pass one contrast if only that is needed"
        )
    return warnings


def contrasts_in(names: Iterable[str]) -> list[str]:
    """Contrasts in the names of files, each once, in lower case.

    Examples:
        >>> contrasts_in(["anna_T2w", "otto_t1", "t2_spine"])
        ['t1', 't2']
    """
    contrasts = set()
    for name in names:
        for match in CONTRAST.finditer(name.replace("_", " ")):
            contrasts.add(match[1].lower())
    return sorted(contrasts)


def field_of_view_warnings(
    ct: Iterable[Path], mr: Iterable[Path], slice_axis: int = 0
) -> list[str]:
    """Warn where slices of CT show much less of the body than those of MR do; ``slice_axis`` is that in RAS."""
    warnings = []
    ct_mm = _extents_mm(ct)
    mr_mm = _extents_mm(mr)
    for axis, direction in enumerate(DIRECTIONS):
        if axis != slice_axis and ct_mm[axis] < SMALLER * mr_mm[axis]:
            warnings.append(
                f"the CT show {ct_mm[axis]:.0f} mm {direction}, the MR {mr_mm[axis]:.0f} mm (medians): what is beyond "
                "was never seen in training, and may be taken for a class; pass CT of the whole region, or crop the MR"
            )
    return warnings


def _extents_mm(paths: Iterable[Path]) -> np.ndarray:
    """Median extents of volumes along R, A and S, ``(3,)`` mm."""
    extents = []
    for path in paths:
        image = nib.as_closest_canonical(open_volume(path))
        spacing_mm = voxel_sizes(image.affine)
        extents.append(spacing_mm * image.shape)
    return np.median(extents, axis=0)
