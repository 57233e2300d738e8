# SPDX-License-Identifier: Apache-2.0
"""Generators: one image in, one image out."""

from __future__ import annotations

from typing import Any

from monai.networks.blocks import Convolution
from monai.networks.layers.simplelayers import SkipConnection
from monai.networks.utils import normal_init
from torch import Tensor, nn


class ResnetGenerator(nn.Sequential):
    """The generator of CycleGAN, with reflection padding and instance norm: ``(B, in, H, W) -> (B, out, H, W)``.

    Images are in [-1, 1]; H and W must be multiples of ``size_divisor``. Weights start from a normal distribution with
    a standard deviation of 0.02.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        channels: channels at full resolution; twice as many at half, four times as many at a quarter.
        blocks: residual blocks at a quarter of the resolution; 9 in the paper.

    Raises:
        ValueError: for less than one channel or block.

    References:
        Zhu et al., arXiv 1703.10593, section 7.2; Johnson et al., arXiv 1603.08155.
    """

    size_divisor = 4

    def __init__(
        self, in_channels: int = 1, out_channels: int = 1, channels: int = 64, blocks: int = 9
    ) -> None:
        if channels < 1 or blocks < 1:
            raise ValueError(f"expected 1 or more channels and blocks, got {channels} and {blocks}")
        layers = features(in_channels, channels, blocks) + image_layers(channels, out_channels)
        super().__init__(*layers)
        self.apply(normal_init)


def features(in_channels: int, channels: int, blocks: int) -> list[nn.Module]:
    """First half of the generator: layers from an image ``(B, in, H, W)`` to ``(B, 4 * channels, H / 4, W / 4)``."""
    encoder = [
        nn.ReflectionPad2d(3),
        _convolution(in_channels, channels, 7),
        _convolution(channels, 2 * channels, 3, strides=2, padding=1),
        _convolution(2 * channels, 4 * channels, 3, strides=2, padding=1),
    ]
    residual_blocks = [_residual(4 * channels) for _ in range(blocks)]
    return [*encoder, *residual_blocks]


def image_layers(
    channels: int, out_channels: int, size: int = 7, act: str | None = "TANH"
) -> list[nn.Module]:
    """Second half: layers from features to ``(B, out, H, W)``; the last kernel has ``size`` pixels."""
    return [
        _up(4 * channels, 2 * channels),
        _up(2 * channels, channels),
        nn.ReflectionPad2d(size // 2),
        _convolution(channels, out_channels, size, act=act, norm=None),
    ]


def _convolution(channels_in: int, channels_out: int, size: int, **options: Any) -> Convolution:
    options = {"padding": 0, "act": "RELU", "norm": "INSTANCE", **options}
    return Convolution(2, channels_in, channels_out, kernel_size=size, **options)


def _up(channels_in: int, channels_out: int) -> Convolution:
    return _convolution(
        channels_in, channels_out, 3, strides=2, is_transposed=True, padding=1, output_padding=1
    )


def _residual(channels: int) -> SkipConnection:
    layers = nn.Sequential(
        nn.ReflectionPad2d(1),
        _convolution(channels, channels, 3),
        nn.ReflectionPad2d(1),
        _convolution(channels, channels, 3, act=None),
    )
    return SkipConnection(layers, mode="add")


def image_of(output: Tensor | tuple[Tensor, dict[str, Tensor]]) -> Tensor:
    """Image in a generator's output, which is the image alone or with a dictionary of other tensors."""
    return output[0] if isinstance(output, tuple) else output
