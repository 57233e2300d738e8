# SPDX-License-Identifier: Apache-2.0
"""The denoising network: MONAI's diffusion U-Net on slices concatenated with their contours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle


class ContourUNet(DiffusionModelUNet):
    """MONAI's ``DiffusionModelUNet`` in two dimensions, epsilon_theta(x_t, t | c) of the paper.

    ``patch_size`` folds pixels into channels before the network and unfolds them after it, so that a 256 x 256 network
    with ``patch_size=2`` costs as much as a 128 x 128 network; 1 is the paper's network. The keys of the state dict are
    MONAI's. ``in_channels`` is 2 for noisy image and contour, 3 with an adjacent slice; ``spatial_dims`` must be 2.
    Other arguments are those of ``DiffusionModelUNet``.
    """

    def __init__(
        self,
        in_channels: int = 2,
        out_channels: int = 1,
        patch_size: int = 1,
        channels: Sequence[int] = (128, 128, 256, 256, 512, 512),
        spatial_dims: int = 2,
        **kwargs: Any,
    ) -> None:
        if spatial_dims != 2:
            raise ValueError(f"ContourUNet works on slices: spatial_dims must be 2, got {spatial_dims}")
        if patch_size < 1:
            raise ValueError(f"patch_size must be 1 or more, got {patch_size}")
        folded = patch_size**2
        super().__init__(spatial_dims, in_channels * folded, out_channels * folded, channels=channels, **kwargs)
        self.patch_size = patch_size

    @property
    def size_divisor(self) -> int:
        """Height and width of the input must be multiples of this many pixels."""
        return self.patch_size * 2 ** (len(self.block_out_channels) - 1)

    def forward(self, x: Tensor, timesteps: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        """Network output for ``x (B, in_channels, H, W)`` at ``timesteps (B,)``: ``(B, out_channels, H, W)``.

        Without ``timesteps`` they are 0, for shape checks with the image alone.
        """
        if timesteps is None:
            timesteps = torch.zeros(x.shape[0], dtype=torch.long, device=x.device)
        if self.patch_size > 1:
            x = pixel_unshuffle(x, self.patch_size)
        out: Tensor = super().forward(x, timesteps, *args, **kwargs)
        return pixel_shuffle(out, self.patch_size) if self.patch_size > 1 else out
