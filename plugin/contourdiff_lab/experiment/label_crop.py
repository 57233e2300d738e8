# SPDX-License-Identifier: Apache-2.0
"""The labelled slices of a volume: what a comparison of segmentation networks needs to translate."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import chain
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

    Args:
        case: paths of ``image`` and ``label``, on the same grid.
        values: values of each class, see [`contourdiff.data.label_map.LabelMap.values`][].
        slice_end: end of the axis along which slices are stacked, such as ``"R"``.
        folder: image and label are written to ``folder/name`` and ``folder/labels/name``; existing files are kept.
        name: file name; a volume without any class is named in the log and left out.
    """
    image_path = folder / name
    label_path = folder / "labels" / name
    if image_path.is_file() and label_path.is_file():
        return
    image = nib.load(case["image"])
    label = nib.load(case["label"])
    axis = _axis_towards(slice_end, image.affine)
    classes = np.isin(label.dataobj, [*chain.from_iterable(values.values())])
    labelled = np.flatnonzero(np.moveaxis(classes, axis, 0).any((1, 2)))
    if not len(labelled):
        logger.warning("%s holds no class of the label map and is left out", name)
        return
    crop = [slice(None)] * 3
    crop[axis] = slice(int(labelled[0]), int(labelled[-1]) + 1)
    for volume, path in ((label, label_path), (image, image_path)):
        with atomic_write(path) as aside:
            nib.save(volume.slicer[tuple(crop)], aside)


def _axis_towards(end: str, affine: np.ndarray) -> int:
    """Axis of the voxels that runs towards an end of the patient, or away from it."""
    ends = nib.aff2axcodes(affine)
    return ends.index(end) if end in ends else ends.index(OPPOSITE[end])
