# SPDX-License-Identifier: Apache-2.0
"""Random surroundings of bone: fat and muscle as in MR, and cortical bone as a dark rim."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import RandomizableTransform
from monai.utils import convert_to_dst_type, convert_to_numpy
from scipy.ndimage import distance_transform_edt, gaussian_filter
from scipy.special import expit

from contourdiff.limits import check_number
from contourdiff.transforms.keyed import LabelledKeyedTransform

AIR = 0.03
"""Gray levels up to this are air, and stay."""
CORTEX_MM = (-1.0, 0.4)
"""Where the dark rim begins and ends, by the distance from the surface of the label, negative inside."""
EDGE_MM = 0.35
"""Width of the transition from one tissue to the next."""
REACH_MM = 30.0
"""Distance from the bone up to which its surroundings change."""
REGION_MM = 15.0
"""Extent of the regions that change."""
MUSCLE_ACROSS_MM = (1.2, 3.0)
MUSCLE_ALONG_MM = (3.0, 12.0)
"""Extent of streaks of muscle in fat, along the first and the second axis of a slice."""
GRAIN_PX = 1.4
HALF_FAT_HU = (-50.0, 0.0)
"""HU of a pixel that is half fat and half muscle; it differs with the CT, and is drawn."""
FAT_TO_MUSCLE_HU = (8.0, 25.0)
"""Width of the transition from fat to muscle in CT."""
HALF_GAS_HU = -400.0
GAS_TO_TISSUE_HU = 50.0
"""HU of a pixel that is half gas, of lung or bowel, and half tissue, and the width of the transition."""
CT_SMOOTHING_PX = (0.3, 0.8)
CT_REGION_SHARE = (0.6, 0.98)
"""Of a slice that changes, where the CT says what is fat."""
BRIGHTEST = 0.99
"""Share of the pixels that are at most white, as in the images that the network sees."""
FEW_PIXELS = 20
"""A slice with less bone stays as it is."""


@dataclass(frozen=True)
class Surroundings:
    """What is drawn for a slice; gray levels are shares of that of the bone."""

    region_share: float
    """Of the slice that changes."""
    muscle_share: float
    """Of the surroundings; the rest is fat."""
    streaks_mm: tuple[float, float]
    fat: float
    muscle: float
    cortex: float

    @classmethod
    def drawn(cls, random: np.random.RandomState) -> Surroundings:
        """Draw all of them."""
        return cls(
            region_share=random.uniform(0.4, 0.8),
            muscle_share=random.uniform(0, 0.7),
            streaks_mm=(random.uniform(*MUSCLE_ACROSS_MM), random.uniform(*MUSCLE_ALONG_MM)),
            fat=random.uniform(1.1, 2.4),
            muscle=random.uniform(0.1, 0.55),
            cortex=random.uniform(0.1, 0.45),
        )


@dataclass(eq=False)
class RandBoneSurroundings(RandomizableTransform):
    """Put fat, muscle and a dark cortex around the bone of a slice, in random regions of it.

    The contour of a CT does not say where fat is, and a translator paints what is between bones as dark as muscle. A
    network that learns from this takes whatever is bright for bone. In MR fat is brighter than bone, and cortical bone
    is dark. What is fat and what is muscle is known from the CT, where gas is black, or drawn: fat with streaks of
    muscle.

    Args:
        classes: numbers of the classes that are bone; without any, nothing changes.
        pixel_mm: size of the pixels.
        probability: share of the slices that change.
        ct_share: of these, the share whose fat is that of the CT; without a CT there are none.

    Raises ``ValueError`` for a pixel size or a probability out of range.
    """

    classes: Collection[int] = ()
    pixel_mm: float = 1.5
    probability: float = 0.5
    ct_share: float = 0.6

    def __post_init__(self) -> None:
        check_number("pixel_mm", self.pixel_mm, 0.01)
        check_number("probability", self.probability, 0, 1)
        check_number("ct_share", self.ct_share, 0, 1)
        super().__init__(prob=self.probability)

    def __call__(
        self,
        img: NdarrayOrTensor,
        label: NdarrayOrTensor | None = None,
        ct: NdarrayOrTensor | None = None,
    ) -> NdarrayOrTensor:
        """Image of levels in [0, 1], label of integer classes, CT in HU, ``(1, H, W)`` -> image in [0, 1], float32.

        Without a label, nothing changes.
        """
        self.randomize(None)
        image = convert_to_numpy(img).astype(np.float32)
        if self._do_transform and label is not None:
            classes = np.rint(convert_to_numpy(label)[0])
            bone = np.isin(classes, list(self.classes))
            if bone.sum() >= FEW_PIXELS:
                hounsfield = None if ct is None else convert_to_numpy(ct)[0].astype(np.float32)
                image = self._surrounded(image[0], bone, hounsfield)[None]
        return convert_to_dst_type(image, img, dtype=torch.float32)[0]

    def _surrounded(self, image: np.ndarray, bone: np.ndarray, ct: np.ndarray | None) -> np.ndarray:
        drawn = Surroundings.drawn(self.R)
        region_share = drawn.region_share
        marrow_level = np.median(image[bone])
        grain = self._field(image.shape, (GRAIN_PX * self.pixel_mm,) * 2)
        tissue_share: np.ndarray | float = 1.0
        if ct is not None and self.R.uniform() < self.ct_share:
            fat_share, tissue_share = self._shares_of(ct)
            region_share = self.R.uniform(*CT_REGION_SHARE)
        else:
            streaks = self._field(image.shape, drawn.streaks_mm)
            fat_share = expit((streaks - np.quantile(streaks, drawn.muscle_share)) / 0.15)
        level = drawn.muscle + (drawn.fat - drawn.muscle) * fat_share
        around = tissue_share * marrow_level * level * (1 + 0.1 * grain)
        texture = image - gaussian_filter(image, 2)
        marrow = marrow_level * (1 + 0.07 * grain) + 0.5 * texture

        distance_mm = self._distance_mm(bone)
        inner, outer = CORTEX_MM
        is_marrow = expit((inner - distance_mm) / EDGE_MM)
        is_around = expit((distance_mm - outer) / EDGE_MM)
        is_cortex = (1 - is_marrow - is_around).clip(0, 1)
        made = is_marrow * marrow + is_around * around + is_cortex * drawn.cortex * marrow_level

        regions = self._field(image.shape, (REGION_MM, REGION_MM))
        in_region = expit((regions - np.quantile(regions, 1 - region_share)) / 0.12)
        is_near = expit((REACH_MM - distance_mm) / 3)
        is_tissue = gaussian_filter((image > AIR).astype(np.float32), 1)
        weight = in_region * is_near * is_tissue
        mixed = (1 - weight) * image + weight * made
        brightest = max(1.0, float(np.quantile(mixed, BRIGHTEST)))
        return (mixed / brightest).clip(0, 1).astype(np.float32)

    def _shares_of(self, ct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How much of each pixel's tissue is fat, and how much of the pixel is tissue, in [0, 1], by a CT in HU."""
        smoothed = gaussian_filter(ct, self.R.uniform(*CT_SMOOTHING_PX))
        middle = self.R.uniform(*HALF_FAT_HU)
        width = self.R.uniform(*FAT_TO_MUSCLE_HU)
        fat_share = expit((middle - smoothed) / width)
        tissue_share = expit((smoothed - HALF_GAS_HU) / GAS_TO_TISSUE_HU)
        return np.asarray(fat_share), np.asarray(tissue_share)

    def _field(self, shape: tuple[int, ...], extent_mm: Sequence[float]) -> np.ndarray:
        """A smooth random field of mean 0 and standard deviation 1."""
        white = self.R.standard_normal(shape).astype(np.float32)
        field = gaussian_filter(white, [extent / self.pixel_mm for extent in extent_mm])
        return (field - field.mean()) / field.std()

    def _distance_mm(self, bone: np.ndarray) -> np.ndarray:
        """Distance of the centers of pixels from the border of the bone, negative inside."""
        outside = distance_transform_edt(~bone)
        inside = distance_transform_edt(bone)
        pixels = np.where(bone, 0.5 - inside, outside - 0.5)
        return pixels * self.pixel_mm


class RandBoneSurroundingsd(LabelledKeyedTransform):
    """Dictionary version of [`RandBoneSurroundings`][], whose keyword arguments it takes.

    Each key has its own draws. ``ct_key`` names the CT, which stays as it is; items may lack it.
    """

    array_class = RandBoneSurroundings

    def __init__(self, keys: KeysCollection, ct_key: str = "ct", **options: Any) -> None:
        super().__init__(keys, **options)
        self.ct_key = ct_key

    def further(self, data: Mapping[Hashable, Any]) -> tuple[Any, ...]:
        """Label and CT."""
        return *super().further(data), data.get(self.ct_key)
