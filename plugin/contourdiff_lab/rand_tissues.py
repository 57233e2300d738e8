# SPDX-License-Identifier: Apache-2.0
"""Random tissues: every class and its surroundings get gray levels of their own, drawn anew for every slice."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, Randomizable
from monai.utils import convert_to_dst_type, convert_to_numpy

from contourdiff.transforms.rand_remap import blend_with_curve


@dataclass(eq=False)
class RandTissues(Randomizable):
    """Map the gray levels of each class by a random curve of its own; air stays dark.

    The tissues of SynthSeg (Billot et al., Medical Image Analysis 86, 2023) are labels of a whole head, each with a
    random mean. Labels of CT name a few structures, so here a tissue is a range of gray levels within a class or within
    the background: the curve is piecewise linear through independent levels, and fat, muscle and bone lie at different
    knots. Unlike [`contourdiff.transforms.rand_remap.RandRemap`][] nothing of the CT's own contrast is left, and a
    structure may differ from surroundings of the same CT value.

    Args:
        knots: random levels, evenly spaced over [0, 1].
        air: levels up to this one stay as they are.
    """

    knots: int = 6
    air: float = 0.03

    def __post_init__(self) -> None:
        if self.knots < 2:
            raise ValueError(f"expected 2 knots or more, got {self.knots}")

    def randomize(self, data: Any = None) -> None:
        """Draw the levels of as many classes as ``data``."""
        self._levels = self.R.uniform(0, 1, (int(data), self.knots))

    def __call__(self, img: NdarrayOrTensor, label: NdarrayOrTensor) -> NdarrayOrTensor:
        """Image of levels in [0, 1] and label of integer classes, both ``(C, H, W)`` -> image, float32."""
        data = convert_to_numpy(img).astype(np.float32)
        classes = np.rint(convert_to_numpy(label)).astype(np.int64)
        self.randomize(classes.max(initial=0) + 1)
        masks = []
        mapped = []
        for number, levels in enumerate(self._levels):
            masks.append(classes == number)
            mapped.append(blend_with_curve(data, levels, 1.0, top=1, air=self.air))
        tissues = np.select(masks, mapped)
        return convert_to_dst_type(tissues, img, dtype=torch.float32)[0]


class RandTissuesd(Randomizable, MapTransform):
    """Dictionary version of [`RandTissues`][]; ``label_key`` is the label, ``kwargs`` are its arguments."""

    def __init__(self, keys: KeysCollection, label_key: str = "label", **kwargs: Any) -> None:
        super().__init__(keys)
        self.label_key = label_key
        self.transform = RandTissues(**kwargs)

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> RandTissuesd:
        """Seed the draws."""
        self.transform.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace the image of every key."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self.transform(item[key], data[self.label_key])
        return item
