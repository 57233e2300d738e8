# SPDX-License-Identifier: Apache-2.0
"""Augmentation across modalities: a slice of one sequence is changed to look like one of any other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from monai.config import NdarrayOrTensor
from monai.transforms import (
    RandAdjustContrast,
    RandBiasField,
    RandGaussianNoise,
    Randomizable,
    RandomizableTransform,
    RandSimulateLowResolution,
    Transform,
)
from monai.utils import convert_to_dst_type, convert_to_numpy
from numpy.random import RandomState
from scipy.ndimage import convolve, gaussian_filter
from scipy.special import expit
from skimage.exposure import equalize_hist
from skimage.filters import scharr, unsharp_mask

from contourdiff.limits import check_choice, check_number
from contourdiff.transforms.keyed import LabelledKeyedTransform

FUNCTIONS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = MappingProxyType(
    {
        "exp": np.exp,
        "log": lambda levels: np.log(levels + 0.05),
        "sigmoid": lambda levels: expit(10 * (levels - 0.5)),
        "sine": lambda levels: np.sin(2 * np.pi * levels),
        "square": np.square,
        "sqrt": np.sqrt,
    }
)
"""Functions of gray levels in [0, 1]; their results are stretched to [0, 1]."""

FLAT = 1e-6
"""Extent of gray levels below which an image is constant."""
EDGE_PX = 0.7
"""Standard deviation of the smoothing at the border of a redistributed class, so that no sharp edge is drawn there."""


def stretched(image: np.ndarray) -> np.ndarray:
    """Scale any levels to [0, 1], from smallest to largest; a constant image is clipped."""
    low = image.min()
    extent = image.max() - low
    if extent < FLAT:
        return image.clip(0, 1)
    return (image - low) / extent


def inverse(image: np.ndarray, label: np.ndarray, random: RandomState) -> np.ndarray:
    """Turn bright to dark."""
    return 1 - image


def equalization(image: np.ndarray, label: np.ndarray, random: RandomState) -> np.ndarray:
    """Equalize the histogram: every level becomes as frequent as any other."""
    if image.max() - image.min() < FLAT:
        return image
    return stretched(equalize_hist(image))


def redistribution(image: np.ndarray, label: np.ndarray, random: RandomState) -> np.ndarray:
    """Give each class of the label, the background too, another mean and another spread of its gray levels."""
    classes = np.unique(label)
    means = random.uniform(0, 1, len(classes))
    gains = random.uniform(0.3, 1.5, len(classes))
    out = np.zeros_like(image)
    for number, mean, gain in zip(classes, means, gains, strict=True):
        inside = label == number
        centered = image - image[inside].mean()
        changed = mean + gain * centered
        mask = inside.astype(np.float32)
        weight = gaussian_filter(mask, (0, EDGE_PX, EDGE_PX))
        out += weight * changed
    return out.clip(0, 1)


def edges(image: np.ndarray, label: np.ndarray, random: RandomState) -> np.ndarray:
    """Gradient magnitude by Scharr's filter."""
    return stretched(scharr(image[0])[None])


def unsharp(image: np.ndarray, label: np.ndarray, random: RandomState) -> np.ndarray:
    """Sharpen by an unsharp mask of random radius and amount."""
    radius = random.uniform(0.5, 2)
    amount = random.uniform(0.5, 2)
    return unsharp_mask(image, radius=radius, amount=amount, channel_axis=0)


def convolution(image: np.ndarray, label: np.ndarray, random: RandomState) -> np.ndarray:
    """Blend with a convolution by a random kernel of 1, 3 or 5 px, whose absolute values sum to 1.

    After Xu et al., ICLR 2021, arXiv 2007.13003: shapes stay, contrast and texture change.
    """
    size = random.choice([1, 3, 5])
    kernel = random.normal(size=(1, size, size))
    kernel /= np.abs(kernel).sum()
    share = random.uniform()
    convolved = convolve(image, kernel, mode="nearest")
    return share * stretched(convolved) + (1 - share) * image


def function(image: np.ndarray, label: np.ndarray, random: RandomState) -> np.ndarray:
    """Map the levels by one of [`FUNCTIONS`][contourdiff.transforms.cross_domain.FUNCTIONS]."""
    name = random.choice(list(FUNCTIONS))
    return stretched(FUNCTIONS[name](image))


def drawn(transform: RandomizableTransform, image: np.ndarray, random: RandomState) -> np.ndarray:
    """Apply a random transform of MONAI, whose draws are those of ``random``."""
    transform.set_random_state(state=random)
    return convert_to_numpy(transform(image))


def gamma(image: np.ndarray, label: np.ndarray, random: RandomState) -> np.ndarray:
    """Raise the levels to a random power."""
    transform = RandAdjustContrast(1.0, gamma=(0.5, 2.0))
    return drawn(transform, image, random)


def bias_field(image: np.ndarray, label: np.ndarray, random: RandomState) -> np.ndarray:
    """Multiply with a smooth field, as that of a surface coil."""
    transform = RandBiasField(prob=1.0, coeff_range=(-0.3, 0.3))
    return drawn(transform, image, random)


def low_resolution(image: np.ndarray, label: np.ndarray, random: RandomState) -> np.ndarray:
    """Average over larger pixels, then interpolate."""
    transform = RandSimulateLowResolution(
        1.0, downsample_mode="area", upsample_mode="bilinear", zoom_range=(0.4, 1.0)
    )
    return drawn(transform, image, random)


def noise(image: np.ndarray, label: np.ndarray, random: RandomState) -> np.ndarray:
    """Add Gaussian noise."""
    transform = RandGaussianNoise(1.0, std=0.1)
    return drawn(transform, image, random)


Part = Callable[[np.ndarray, np.ndarray, RandomState], np.ndarray]
"""Changes an image ``(1, H, W)`` in [0, 1], given its label of that shape and a source of random numbers."""

PARTS: Mapping[str, tuple[Part, float]] = MappingProxyType(
    {
        "redistribution": (redistribution, 0.5),
        "equalization": (equalization, 0.1),
        "function": (function, 0.3),
        "gamma": (gamma, 0.3),
        "convolution": (convolution, 0.3),
        "edges": (edges, 0.1),
        "unsharp": (unsharp, 0.1),
        "inverse": (inverse, 0.1),
        "bias_field": (bias_field, 0.4),
        "low_resolution": (low_resolution, 0.25),
        "noise": (noise, 0.3),
    }
)
"""Parts of the augmentation in the order of their use, each with its probability."""


@dataclass(eq=False)
class RandCrossDomain(Randomizable, Transform):
    """Change contrast, texture and quality of a slice at random, so that no modality can be learned.

    The parts are those of "one sequence to segment them all" (Molinier et al. 2026, arXiv 2605.03098): each has its own
    probability, and several may follow each other. Ranges and probabilities are this project's. Geometry stays: the
    label fits before and after.

    ``probabilities`` replaces those of [`PARTS`][contourdiff.transforms.cross_domain.PARTS] by name. A name that is not
    there, or a value outside of [0, 1], raises ``ValueError``.
    """

    probabilities: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        self.chances = {}
        for name, (_, chance) in PARTS.items():
            self.chances[name] = chance
        probabilities = self.probabilities or {}
        for name, chance in probabilities.items():
            check_choice("a part of the augmentation", name, list(PARTS))
            check_number(f"probability of {name}", chance, 0, 1)
            self.chances[name] = chance

    def randomize(self, data: Any = None) -> None:
        """Draw which parts are used."""
        self.used: list[str] = []
        for name, chance in self.chances.items():
            if self.R.uniform() < chance:
                self.used.append(name)

    def __call__(
        self, img: NdarrayOrTensor, label: NdarrayOrTensor | None = None
    ) -> NdarrayOrTensor:
        """Image of levels in [0, 1] and label of integer classes, both ``(1, H, W)`` -> image in [0, 1], float32.

        Without a label, the whole image is one class. Raises ``ValueError`` for another shape.
        """
        data = convert_to_numpy(img).astype(np.float32)
        classes = np.zeros(data.shape)
        if label is not None:
            classes = np.rint(convert_to_numpy(label))
        is_slice = data.ndim == 3 and data.shape[0] == 1
        if not is_slice or classes.shape != data.shape:
            raise ValueError(
                f"expected an image and a label (1, H, W), got {data.shape} and {classes.shape}; "
                "cut volumes into slices"
            )
        self.randomize()
        for name in self.used:
            part, _ = PARTS[name]
            data = part(data, classes, self.R).clip(0, 1)
        return convert_to_dst_type(data, img, dtype=torch.float32)[0]


class RandCrossDomaind(LabelledKeyedTransform):
    """Dictionary version of [`RandCrossDomain`][], whose keyword arguments it takes; each key has its own draws."""

    array_class = RandCrossDomain
