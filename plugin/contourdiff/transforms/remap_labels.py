# SPDX-License-Identifier: Apache-2.0
"""Map label values to the classes of a segmentation."""

from __future__ import annotations

import numpy as np
import torch
from monai.config import NdarrayOrTensor
from monai.transforms import Transform
from monai.utils import convert_to_dst_type, convert_to_numpy

from contourdiff.data.label_map import LabelMap
from contourdiff.transforms.keyed import KeyedTransform


class RemapLabels(Transform):
    """Replace label values of ``side``, ``"ct"`` or ``"mr"``, by class numbers; a value that no class lists becomes 0.

    MONAI's ``MapLabelValue`` leaves such values as they are, so that a label of another organ would count as a class.
    ``label_map`` is a [`contourdiff.data.label_map.LabelMap`][] or its file, also for errors.
    """

    def __init__(self, label_map: LabelMap | str, side: str) -> None:
        if not isinstance(label_map, LabelMap):
            label_map = LabelMap(label_map)
        self.values = label_map.values(side)

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """Label of any shape -> class numbers of that shape, float32, as MONAI's losses and resampling require."""
        data = np.rint(convert_to_numpy(img))
        data = data.astype(np.int64)
        out = np.zeros(data.shape, dtype=np.float32)
        for number, values in self.values.items():
            belongs = np.isin(data, values)
            out[belongs] = number
        return convert_to_dst_type(out, img, dtype=torch.float32)[0]


class RemapLabelsd(KeyedTransform):
    """Dictionary version of [`RemapLabels`][], whose keyword arguments it takes."""

    array_class = RemapLabels
