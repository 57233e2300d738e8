# SPDX-License-Identifier: Apache-2.0
"""Outline of the label, added to the contour."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_dst_type
from torch import Tensor

from contourdiff.contours import outline_of
from contourdiff.data.volumes import open_volume, scaled_voxels
from contourdiff.transforms.label_resample import resample_label
from contourdiff.transforms.slicewise import slicewise

CT_CONTOUR = "ct_contour"
"""Key of the contour without the outline, which the fidelity is measured against."""


@dataclass(eq=False)
class AddOutline(Transform):
    """Add the outline of a label to a contour: see [`contourdiff.contours.outline_of`][].

    The label is resampled to the grid of the contour, see [`contourdiff.transforms.label_resample.resample_label`][],
    and outlined slice by slice. Slices are stacked along the spatial axis ``slice_axis``.
    """

    slice_axis: int = 0

    def __call__(self, img: Tensor, label: str | Path) -> Tensor:
        """Contour ``img``, a MetaTensor ``(1, H, W, D)``, and a NIfTI file -> 0/1, the shape of ``img``, float32."""
        if not isinstance(img, MetaTensor) or img.ndim != 4:
            raise ValueError(
                f"expected a MetaTensor (1, H, W, D), got {type(img).__name__} of {tuple(img.shape)}; "
                "add the outline after the contour of a volume"
            )
        to_world = np.asarray(img.affine, dtype=np.float64)
        to_label = np.linalg.solve(open_volume(label).affine, to_world)
        on_grid = resample_label(scaled_voxels(label), to_label, img.shape[1:])
        outline = slicewise(on_grid[None], self.slice_axis, outline_of)
        added = np.maximum(outline, np.asarray(img))
        return convert_to_dst_type(added, img, dtype=torch.float32)[0]


class AddOutlined(MapTransform):
    """Dictionary version of [`AddOutline`][], for an item whose ``outline`` is true; others stay as they are.

    The path of the label is the item's ``label``. The contour without the outline is kept as ``ct_contour``.
    """

    def __init__(self, keys: KeysCollection, slice_axis: int = 0) -> None:
        super().__init__(keys)
        self.transform = AddOutline(slice_axis)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the outline to the contour of every key."""
        out = dict(data)
        if not out.get("outline", False):
            return out
        for key in self.key_iterator(out):
            out[CT_CONTOUR] = out[key]
            out[key] = self.transform(out[key], out["label"])
        return out
