# SPDX-License-Identifier: Apache-2.0
"""The denoising networks: MONAI's diffusion U-Net on slices and their contours, a cascade of two, and guidance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet
from torch import Tensor, nn
from torch.nn.functional import interpolate, pixel_shuffle, pixel_unshuffle

from contourdiff.limits import check_choice, check_number, check_whole


class ContourUNet(DiffusionModelUNet):
    """MONAI's ``DiffusionModelUNet`` in two dimensions, epsilon_theta(x_t, t | c) of the paper, with MONAI's keys.

    Raises ``ValueError`` for an argument out of range.

    Args:
        in_channels: 2 for noisy image and contour, 3 with an adjacent slice.
        out_channels: 1 for the noise or the velocity.
        patch_size: folds pixels into channels before the network and unfolds them after it, so that a 256 x 256 network
            with 2 costs as much as a 128 x 128 network; 1 is the paper's network.
        channels: of each level.
        spatial_dims: 2.
        contrasts: names of the MR contrasts that one network paints, by MONAI's class embedding; none for a single one.
        contrast: the one that is painted unless ``class_labels`` say otherwise; ``None`` takes the first.
        kwargs: of ``DiffusionModelUNet``.
    """

    def __init__(
        self,
        in_channels: int = 2,
        out_channels: int = 1,
        patch_size: int = 1,
        channels: Sequence[int] = (128, 128, 256, 256, 512, 512),
        spatial_dims: int = 2,
        contrasts: Sequence[str] = (),
        contrast: str | None = None,
        **kwargs: Any,
    ) -> None:
        if spatial_dims != 2:
            raise ValueError(
                f"ContourUNet works on slices: spatial_dims must be 2, got {spatial_dims}"
            )
        check_whole("patch_size", patch_size, 1, 1024)
        if contrasts:
            kwargs["num_class_embeds"] = len(contrasts)
        folded = patch_size**2
        super().__init__(
            spatial_dims, in_channels * folded, out_channels * folded, channels=channels, **kwargs
        )
        self.patch_size = patch_size
        self.contrasts = tuple(contrasts)
        self._label = contrast_label(self.contrasts, contrast)

    @property
    def size_divisor(self) -> int:
        """Height and width of the input must be multiples of this many pixels."""
        return self.patch_size * 2 ** (len(self.block_out_channels) - 1)

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        timesteps: Tensor | None = None,
        context: Tensor | None = None,
        class_labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Network output for ``x (B, in_channels, H, W)`` at ``timesteps (B,)``, or 0: ``(B, out_channels, H, W)``.

        ``class_labels (B,)`` are positions in ``contrasts``; without them every item has the contrast ``contrast``.
        """
        count = (x.shape[0],)
        if class_labels is None and self.num_class_embeds is not None:
            class_labels = torch.full(count, self._label, dtype=torch.long, device=x.device)
        if timesteps is None:
            timesteps = torch.zeros(count, dtype=torch.long, device=x.device)
        if self.patch_size > 1:
            x = pixel_unshuffle(x, self.patch_size)
        out: Tensor = super().forward(x, timesteps, context, class_labels, **kwargs)
        return pixel_shuffle(out, self.patch_size) if self.patch_size > 1 else out


class CascadeUNet(nn.Module):
    """Two networks: one paints a slice at low resolution, the other refines it to full resolution.

    [`contourdiff.inference.denoiser.CascadeDenoiser`][] calls them, and [`contourdiff.transforms.cascade_items`][] is
    what they are trained on (Ho et al., "Cascaded Diffusion Models for High Fidelity Image Generation", JMLR 23, 2022).

    Args:
        coarse: ``in_channels`` is ``1 + factor**2``: noisy image and the contour, folded.
        refiner: ``in_channels`` is 3: noisy image, contour and enlarged coarse image.
        factor: pixels of the refiner along a side of a pixel of ``coarse``, from 2; or ``ValueError``.
    """

    def __init__(self, coarse: nn.Module, refiner: nn.Module, factor: int = 2) -> None:
        super().__init__()
        check_whole("factor", factor, 2, 1024)
        self.coarse = coarse
        self.refiner = refiner
        self.factor = factor

    @property
    def size_divisor(self) -> int:
        """Height and width of the contour must be multiples of this many pixels."""
        coarse = self.factor * size_divisor_of(self.coarse)
        return math.lcm(coarse, size_divisor_of(self.refiner))


class GuidedUNet(nn.Module):
    """Classifier-free guidance: move a network's output away from its prediction without a contour.

    ``out = f(x, 0) + scale * (f(x, c) - f(x, 0))``, for a network trained on incomplete contours, too. ``scale``, 0 to
    100 or ``ValueError``, is 1 for the network itself; any other takes two evaluations, and paints edges that the
    network would leave out. The contour is channel 1 of the input; other conditions stay. Source: Ho and Salimans,
    "Classifier-Free Diffusion Guidance", arXiv 2207.12598.
    """

    def __init__(self, network: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        check_number("refinement_guidance", scale, 0, 100)
        self.network = network
        self.scale = scale

    @property
    def size_divisor(self) -> int:
        """Height and width of the input must be multiples of this many pixels."""
        return size_divisor_of(self.network)

    def forward(self, x: Tensor, timesteps: Tensor, **kwargs: Any) -> Tensor:
        """Network output for ``x (B, C, H, W)`` at ``timesteps (B,)``; other arguments are the network's."""
        out: Tensor = self.network(x, timesteps, **kwargs)
        if self.scale == 1:
            return out
        empty = x.clone()
        empty[:, 1] = 0
        without: Tensor = self.network(empty, timesteps, **kwargs)
        return torch.lerp(without, out, self.scale)


def contrast_label(contrasts: Sequence[str], contrast: str | None) -> int:
    """Position of a contrast, 0 for ``None`` or without ``contrasts``; ``ValueError`` for an unknown one."""
    if contrast is None or not contrasts:
        return 0
    check_choice("contrast", contrast, contrasts)
    return contrasts.index(contrast)


def size_divisor_of(network: object) -> int:
    """Height and width of a network's input must be multiples of this many pixels; 1 where it names no other."""
    return int(getattr(network, "size_divisor", 1))


def enlarge(image: Tensor, factor: int) -> Tensor:
    """Images ``(N, C, H, W)`` with ``factor`` times as many pixels along each side, interpolated bilinearly."""
    large: Tensor = interpolate(image, scale_factor=factor, mode="bilinear", align_corners=False)
    return large
