# SPDX-License-Identifier: Apache-2.0
"""The generator of MaskGAN, which decides where it translates (Phan et al. 2023, arXiv 2307.16143)."""

from __future__ import annotations

import torch
from monai.networks.utils import normal_init
from torch import Tensor, nn

from contourdiff_lab.baselines.generators import features, image_layers


class AttentionGenerator(nn.Module):
    """Sum of contents and of the input, weighted by attention: ``(B, 1, H, W)`` -> the same, in [-1, 1].

    Features are those of [`contourdiff_lab.baselines.generators.ResnetGenerator`][]. From them one branch makes
    ``attentions - 1`` contents, images in [-1, 1], and the other branch ``attentions`` maps that sum to 1 in every
    pixel. The last map is the attention on the input: where it is 1, the input stays as it is.
    [`contourdiff_lab.baselines.masks.MaskTerm`][] teaches it the background. H and W must be multiples of
    ``size_divisor``.

    Args:
        channels: channels at full resolution.
        blocks: residual blocks at a quarter of the resolution.
        attentions: maps of attention, 2 or more; 5 in the authors' training.

    Raises:
        ValueError: for fewer than 2 maps of attention.

    References:
        Phan et al., arXiv 2307.16143; Tang et al., arXiv 1911.11897, the source of the generator.
    """

    size_divisor = 4

    def __init__(self, channels: int = 64, blocks: int = 9, attentions: int = 5) -> None:
        if attentions < 2:
            raise ValueError(
                f"attentions must be 2 or more, one of them on the input, got {attentions}"
            )
        super().__init__()
        self.features = nn.Sequential(*features(1, channels, blocks))
        self.contents = nn.Sequential(*image_layers(channels, attentions - 1))
        self.attention = nn.Sequential(*image_layers(channels, attentions, size=1, act=None))
        self.apply(normal_init)

    def forward(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The translation, and the attention on the input as ``{"attention": (B, 1, H, W)}``, in [0, 1]."""
        image_features = self.features(image)
        attention = self.attention(image_features).float().softmax(dim=1)
        contents = self.contents(image_features)
        layers = torch.cat([contents, image], dim=1)
        translation = (attention * layers).sum(dim=1, keepdim=True)
        return translation, {"attention": attention[:, -1:]}
