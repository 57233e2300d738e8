# SPDX-License-Identifier: Apache-2.0
"""The noise of MR: Rician, because the magnitude of a complex image is shown."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping
from typing import Any

from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, RandRicianNoise

from contourdiff.limits import MAX_SEED, check_number, check_whole

SEEDS = 2**32
"""Number of seeds of NumPy's generators."""


def with_rician_noise(
    img: NdarrayOrTensor, gray_levels: float, seed: int, name: str
) -> NdarrayOrTensor:
    """Add Rician noise (Gudbjartsson and Patz 1995): ``sqrt((image + n1)^2 + n2^2)``, with Gaussian ``n1`` and ``n2``.

    Args:
        img: gray levels of any shape.
        gray_levels: standard deviation of ``n1`` and ``n2``.
        seed: with ``name`` it determines the noise.
        name: of the image.

    Returns:
        Noisy gray levels of the shape of ``img``.
    """
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    noise = RandRicianNoise(prob=1.0, std=gray_levels, sample_std=False)
    noise.set_random_state(int.from_bytes(digest[:8], "big") % SEEDS)
    return noise(img)


class RicianNoised(MapTransform):
    """[`with_rician_noise`][] for the item of every key; the name of the image is that under ``name_key``.

    ``ValueError`` for ``gray_levels`` outside 0 to 255.
    """

    def __init__(
        self, keys: KeysCollection, gray_levels: float, seed: int = 0, name_key: str = "name"
    ) -> None:
        super().__init__(keys)
        check_number("noise_gray_levels", gray_levels, 0, 255)
        check_whole("seed", seed, 0, MAX_SEED)
        self.gray_levels = gray_levels
        self.seed = seed
        self.name_key = name_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add noise to the item of every key of ``data``."""
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = with_rician_noise(out[key], self.gray_levels, self.seed, out[self.name_key])
        return out
