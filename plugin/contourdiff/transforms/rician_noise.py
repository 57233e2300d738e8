# SPDX-License-Identifier: Apache-2.0
"""The noise of MR: Rician, because the magnitude of a complex image is shown."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, RandRicianNoise, Transform

from contourdiff.limits import MAX_SEED, check_number, check_whole

LARGEST_SEED = 2**32
"""Of NumPy's generators, exclusive."""


@dataclass(eq=False)
class RicianNoise(Transform):
    """Add Rician noise (Gudbjartsson and Patz 1995): ``sqrt((image + n1)^2 + n2^2)``, with Gaussian ``n1`` and ``n2``.

    Args:
        gray_levels: standard deviation of ``n1`` and ``n2``, of 0 to 255.
        seed: with the name of the image it determines the noise.

    Raises:
        ValueError: for a value out of range.
    """

    gray_levels: float
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("noise_gray_levels", self.gray_levels, 0, 255)
        check_whole("seed", self.seed, 0, MAX_SEED)
        self.transform = RandRicianNoise(prob=1.0, std=self.gray_levels, sample_std=False)

    def __call__(self, img: NdarrayOrTensor, name: str) -> NdarrayOrTensor:
        """Gray levels of any shape -> noisy ones of that shape, the same for every call with that ``name``."""
        digest = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
        self.transform.set_random_state(int.from_bytes(digest[:8], "big") % LARGEST_SEED)
        return self.transform(img)


class RicianNoised(MapTransform):
    """Dictionary version of [`RicianNoise`][]; the name of an image is that under ``name_key``."""

    def __init__(
        self, keys: KeysCollection, gray_levels: float, seed: int = 0, name_key: str = "name"
    ) -> None:
        super().__init__(keys)
        self.name_key = name_key
        self.transform = RicianNoise(gray_levels, seed)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add noise to the item of every key of ``data``."""
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = self.transform(out[key], out[self.name_key])
        return out
