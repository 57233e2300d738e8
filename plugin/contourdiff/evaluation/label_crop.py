# SPDX-License-Identifier: Apache-2.0
"""The labelled part of a volume: what a comparison of segmentation networks needs to translate."""

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
    case: Mapping[str, str], values: Mapping[int, Sequence[int]], slice_end: str, folder: Path, name: str
) -> None:
    """Cut image and label to the slices between the first and the last that hold a class; voxels stay as they are.

    What is there already is kept. A volume without any class is named in the log and left out.

    Args:
        case: paths of ``image`` and ``label``, on one grid.
        values: label values of each class, see :meth:`contourdiff.data.label_map.LabelMap.values`.
        slice_end: the direction along which slices are stacked, one letter such as ``"R"``.
        folder: the image goes there, the label to ``labels`` in it.
        name: name of both files.
    """
    if (folder / name).is_file() and (folder / "labels" / name).is_file():
        return
    image, label = nib.load(case["image"]), nib.load(case["label"])
    ends = (slice_end, OPPOSITE[slice_end])
    along = next(axis for axis, end in enumerate(nib.aff2axcodes(image.affine)) if end in ends)
    wanted = np.isin(np.asanyarray(label.dataobj), [value for listed in values.values() for value in listed])
    filled = np.flatnonzero(wanted.any(axis=tuple({0, 1, 2} - {along})))
    if not len(filled):
        logger.warning("%s holds no class of the label map and is left out", name)
        return
    cut = tuple(slice(int(filled[0]), int(filled[-1]) + 1) if axis == along else slice(None) for axis in range(3))
    for path, volume in ((folder / "labels" / name, label), (folder / name, image)):
        with atomic_write(path) as aside:
            nib.save(volume.slicer[cut], aside)
