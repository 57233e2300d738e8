# SPDX-License-Identifier: Apache-2.0
"""Outline of the label, added to the contour."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type
from torch import Tensor

from contourdiff.contours import outline_of
from contourdiff.data.volumes import open_volume, scaled_voxels
from contourdiff.transforms.label_resample import resample_label
from contourdiff.transforms.slicewise import slicewise

CT_CONTOUR = "ct_contour"
"""Key of the contour without the outline, which the fidelity is measured against."""


def add_outline(contour: Tensor, label: str | Path, slice_axis: int = 0) -> Tensor:
    """Add the outline of a label, a NIfTI file, to a contour of 0 and 1: same shape, float32.

    The label is resampled to the grid of the contour, see [`contourdiff.transforms.label_resample.resample_label`][],
    and outlined slice by slice, see [`contourdiff.contours.outline_of`][].

    Args:
        contour: MetaTensor ``(1, H, W, D)``.
        label: on any grid.
        slice_axis: spatial axis along which slices are stacked.

    Raises ``ValueError`` for a contour that is no MetaTensor of a volume.
    """
    if not isinstance(contour, MetaTensor) or contour.ndim != 4:
        raise ValueError(
            f"expected a MetaTensor (1, H, W, D), got {type(contour).__name__} of {tuple(contour.shape)}; "
            "add the outline to the contour of a volume"
        )
    to_world = np.asarray(contour.affine, dtype=np.float64)
    to_label = np.linalg.solve(open_volume(label).affine, to_world)
    on_grid = resample_label(scaled_voxels(label), to_label, contour.shape[1:])
    outline = slicewise(on_grid[None], slice_axis, outline_of)
    added = np.maximum(outline, np.asarray(contour))
    return convert_to_dst_type(added, contour, dtype=torch.float32)[0]


class AddOutlined(MapTransform):
    """Add the outline of its ``label``, a path, to the contour of an item whose ``outline`` is true: [`add_outline`][].

    The contour without the outline is kept as ``ct_contour``. Other items stay as they are.
    """

    def __init__(self, keys: KeysCollection, slice_axis: int = 0) -> None:
        super().__init__(keys)
        self.slice_axis = slice_axis

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the outline to the contour of every key."""
        out = dict(data)
        if not out.get("outline", False):
            return out
        for key in self.key_iterator(out):
            out[CT_CONTOUR] = out[key]
            out[key] = add_outline(out[key], out["label"], self.slice_axis)
        return out
