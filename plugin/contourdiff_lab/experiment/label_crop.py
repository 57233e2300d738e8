# SPDX-License-Identifier: Apache-2.0
"""The labelled slices of a volume: what a comparison of segmentation networks needs to translate."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from contourdiff.data.atomic import atomic_write

logger = logging.getLogger(__name__)
OPPOSITE = {"L": "R", "R": "L", "A": "P", "P": "A", "S": "I", "I": "S"}


def write_label_crop(
    case: Mapping[str, str],
    values: Mapping[int, Sequence[int]],
    slice_end: str,
    folder: Path,
    name: str,
) -> None:
    """Cut image and label to the slices between the first and the last that hold a class; voxels stay as they are.

    ``case`` has paths of ``image`` and ``label`` on the same grid; for the values of each class see
    [`contourdiff.data.label_map.LabelMap.values`][]. Slices are stacked along ``slice_end``, such as ``"R"``. The
    files are ``folder/name`` and ``folder/labels/name``; existing files are kept. A volume without any class is named
    in the log and left out.
    """
    paths = {"label": folder / "labels" / name, "image": folder / name}
    if all(path.is_file() for path in paths.values()):
        return
    volumes = {key: nib.load(case[key]) for key in paths}
    ends = nib.aff2axcodes(volumes["image"].affine)
    along = next(axis for axis, end in enumerate(ends) if end in (slice_end, OPPOSITE[slice_end]))
    classes = np.isin(
        volumes["label"].dataobj, [value for listed in values.values() for value in listed]
    )
    filled = np.flatnonzero(np.moveaxis(classes, along, 0).any((1, 2)))
    if not len(filled):
        logger.warning("%s holds no class of the label map and is left out", name)
        return
    cut = [slice(None)] * 3
    cut[along] = slice(int(filled[0]), int(filled[-1]) + 1)
    for key, path in paths.items():
        with atomic_write(path) as aside:
            nib.save(volumes[key].slicer[tuple(cut)], aside)
