# SPDX-License-Identifier: Apache-2.0
"""What the label says, in the contour: its outline, and bones as MR shows them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type
from nibabel.affines import voxel_sizes
from torch import Tensor

from contourdiff.contours import bone_contour, outline_of
from contourdiff.data.volumes import open_volume, scaled_voxels
from contourdiff.transforms.label_resample import resample_label
from contourdiff.transforms.slicewise import slicewise

CT_CONTOUR = "ct_contour"
"""Key of the contour without the outline, which the fidelity is measured against."""


def bone_contours(
    contour: MetaTensor,
    values: np.ndarray,
    bone_values: Sequence[int],
    slice_axis: int = 0,
    *,
    soft_tissue: bool = False,
) -> Tensor:
    """Contour of 0 and 1 with the bones of a label as MR shows them, see [`contourdiff.contours.bone_contour`][].

    Args:
        contour: MetaTensor ``(1, H, W, D)``.
        values: of the label on the grid of the contour, ``(H, W, D)``, see [`label_on_grid`][].
        bone_values: those that are bone; each is a bone of its own.
        slice_axis: spatial axis along which slices are stacked.
        soft_tissue: add the border of the soft tissue, too.

    Returns the same shape, float32.
    """
    pixel_mm = voxel_sizes(np.asarray(contour.affine)).tolist()
    del pixel_mm[slice_axis]
    changed = np.array(contour)
    stacked = np.moveaxis(changed[0], slice_axis, 0)
    for position, classes in enumerate(np.moveaxis(values, slice_axis, 0)):
        bones = [classes == value for value in bone_values if value in classes]
        stacked[position] = bone_contour(
            stacked[position], bones, pixel_mm, soft_tissue=soft_tissue
        )
    return convert_to_dst_type(changed, contour, dtype=torch.float32)[0]


def add_outline(contour: Tensor, values: np.ndarray, slice_axis: int = 0) -> Tensor:
    """Add the outline of a label to a contour of 0 and 1: same shape, float32.

    It is outlined slice by slice, see [`contourdiff.contours.outline_of`][].

    Args:
        contour: ``(1, H, W, D)``.
        values: of the label on the grid of the contour, ``(H, W, D)``, see [`label_on_grid`][].
        slice_axis: spatial axis along which slices are stacked.
    """
    outline = slicewise(values[None], slice_axis, outline_of)
    added = np.maximum(outline, np.asarray(contour))
    return convert_to_dst_type(added, contour, dtype=torch.float32)[0]


def label_on_grid(contour: Tensor, label: str | Path) -> np.ndarray:
    """Values of a label, a NIfTI file, on the grid of a contour ``(1, H, W, D)``: ``(H, W, D)``.

    See [`contourdiff.transforms.label_resample.resample_label`][]. Raises ``ValueError`` for a contour that is no
    MetaTensor of a volume.
    """
    if not isinstance(contour, MetaTensor) or contour.ndim != 4:
        raise ValueError(
            f"expected a MetaTensor (1, H, W, D), got {type(contour).__name__} of {tuple(contour.shape)}; "
            "add the outline to the contour of a volume"
        )
    to_world = np.asarray(contour.affine, dtype=np.float64)
    to_label = np.linalg.solve(open_volume(label).affine, to_world)
    return resample_label(scaled_voxels(label), to_label, contour.shape[1:])


class AddOutlined(MapTransform):
    """Let the contour of an item show what its ``label``, a path, says.

    Bones, the label values in ``bone_values`` of the item, get the contour that they have in MR: [`bone_contours`][].
    If ``outline`` of the item is true, other values get their outline, [`add_outline`][], and bones the border of the
    soft tissue. ``ct_contour`` is the contour without the latter two. Other items stay as they are.
    """

    def __init__(self, keys: KeysCollection, slice_axis: int = 0) -> None:
        super().__init__(keys)
        self.slice_axis = slice_axis

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Change the contour of every key."""
        out = dict(data)
        bones = out.get("bone_values") or ()
        outlined = out.get("outline", False)
        if not bones and not outlined:
            return out
        for key in self.key_iterator(out):
            contour = out[key]
            values = label_on_grid(contour, out["label"])
            if bones:
                out[key] = bone_contours(contour, values, bones, self.slice_axis)
            if not outlined:
                continue
            out[CT_CONTOUR] = out[key]
            if bones:
                out[key] = bone_contours(contour, values, bones, self.slice_axis, soft_tissue=True)
            others = np.where(np.isin(values, bones), 0, values)
            out[key] = add_outline(out[key], others, self.slice_axis)
        return out
