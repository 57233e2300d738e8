# SPDX-License-Identifier: Apache-2.0
"""A history of generated images for the discriminator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class ImagePool:
    """Up to ``size`` earlier images; the discriminator sees one of them for half of the new ones.

    While the pool fills, every image is kept and returned. After that each image is, with probability 1/2, exchanged
    for a random one of the pool. A size of 0 returns every image. Draws are torch's, on the CPU.

    Raises:
        ValueError: for a negative size.

    References:
        Shrivastava et al., arXiv 1612.07828, section 2.3; Zhu et al., arXiv 1703.10593, section 4.
    """

    def __init__(self, size: int = 50) -> None:
        if size < 0:
            raise ValueError(f"pool_size must be 0 or more, got {size}")
        self.size = size
        self.images: list[Tensor] = []

    def __call__(self, images: Tensor) -> Tensor:
        """Exchange ``images (B, C, H, W)``, which require no gradient: the same shape."""
        return torch.stack([self._exchange(image) for image in images.detach()])

    def _exchange(self, image: Tensor) -> Tensor:
        if len(self.images) < self.size:
            self.images.append(image.clone())
            return image
        if self.size == 0 or torch.rand(()) < 0.5:
            return image
        place = int(torch.randint(self.size, ()))
        earlier_image = self.images[place]
        self.images[place] = image.clone()
        return earlier_image

    def state_dict(self) -> dict[str, Any]:
        """Images of the pool, for a checkpoint."""
        return {"images": list(self.images)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the images of a checkpoint; those beyond ``size`` are left out."""
        self.images = list(state["images"])[: self.size]
