# SPDX-License-Identifier: Apache-2.0
"""Convolutions with fewer multiplications: the same numbers, from the same weights."""

from __future__ import annotations

import copy

import pytest
import torch
from monai.networks.blocks import UpSample
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from contourdiff.inference.convolutions import (
    MIN_CHANNELS,
    RowPairConv2d,
    UpsampledConv2d,
    with_fewer_multiplications,
)
from contourdiff.networks import ContourUNet


def small_unet(channels: int = MIN_CHANNELS) -> ContourUNet:
    torch.manual_seed(0)
    network = ContourUNet(
        patch_size=2, channels=[32, channels], attention_levels=[False, True], num_res_blocks=1, num_head_channels=16
    )
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)
    return network.eval()


def upsampling(factor: float = 2.0, mode: str = "nearest", kernel: int = 3) -> UpSample:
    convolution = nn.Conv2d(5, 5, kernel, padding=kernel // 2)
    return UpSample(2, 5, 5, mode="nontrainable", interp_mode=mode, scale_factor=factor, align_corners=None,
                    post_conv=convolution)  # fmt: skip


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 5), (2, 1), (33, 6)])
@pytest.mark.parametrize("bias", [True, False])
def test_pairs_of_rows_are_the_convolution(size: tuple[int, int], bias: bool) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(6, 10, 3, padding=1, bias=bias).double()
    x = torch.randn(3, 6, *size, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(RowPairConv2d(convolution)(x), convolution(x), atol=1e-12, rtol=0)


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 1)])
def test_upsampling_is_a_transposed_convolution(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(6, 10, 3, padding=1).double()
    x = torch.randn(3, 6, *size, dtype=torch.float64)
    with torch.inference_mode():
        expected = convolution(nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        torch.testing.assert_close(UpsampledConv2d(convolution)(x), expected, atol=1e-12, rtol=0)


def test_a_network_gives_the_same_with_a_quarter_fewer_operations() -> None:
    network = small_unet()
    x, t = torch.randn(2, 2, 48, 40), torch.tensor([3, 700])
    before = copy.deepcopy(network.state_dict())
    faster = with_fewer_multiplications(network)
    with torch.inference_mode():
        with FlopCounterMode(display=False) as plain:
            expected = network(x, t)
        with FlopCounterMode(display=False) as fewer:
            got = faster(x, t)
    torch.testing.assert_close(got, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
    assert fewer.get_total_flops() < 0.75 * plain.get_total_flops()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not any(isinstance(module, RowPairConv2d | UpsampledConv2d) for module in network.modules())


def test_all_other_weights_are_shared() -> None:
    network = small_unet()
    replaced = sum(isinstance(module, RowPairConv2d | UpsampledConv2d)
                   for module in with_fewer_multiplications(network).modules())  # fmt: skip
    own, theirs = (
        {id(parameter) for parameter in each.parameters()} for each in (network, with_fewer_multiplications(network))
    )
    assert theirs < own
    assert len(own - theirs) == 2 * replaced > 0  # a weight and a bias each


def test_narrow_convolutions_stay() -> None:
    faster = with_fewer_multiplications(small_unet(channels=32))
    assert not any(isinstance(module, RowPairConv2d) for module in faster.modules())
    assert sum(isinstance(module, UpsampledConv2d) for module in faster.modules()) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"stride": 2, "padding": 1},
        {"padding": 0},
        {"padding": 1, "groups": 2},
        {"padding": 2, "dilation": 2},
        {"padding": 1, "padding_mode": "circular"},
        {"padding": 1, "dtype": torch.bfloat16},
    ],
)
def test_other_convolutions_stay(other: dict) -> None:
    convolution = nn.Conv2d(MIN_CHANNELS, MIN_CHANNELS, 3, **other)
    assert type(with_fewer_multiplications(nn.Sequential(convolution))[0]) is nn.Conv2d  # type: ignore[index]
    parametrized = nn.utils.parametrizations.weight_norm(nn.Conv2d(MIN_CHANNELS, MIN_CHANNELS, 3, padding=1))
    assert not isinstance(with_fewer_multiplications(parametrized), RowPairConv2d)


@pytest.mark.parametrize("other", [{"factor": 3.0}, {"mode": "bilinear"}, {"kernel": 1}])
def test_other_upsampling_stays(other: dict) -> None:
    assert isinstance(with_fewer_multiplications(upsampling()), UpsampledConv2d)
    assert isinstance(with_fewer_multiplications(upsampling(**other)), UpSample)


def test_an_item_does_not_depend_on_its_batch() -> None:
    faster = with_fewer_multiplications(small_unet())
    x, t = torch.randn(4, 2, 32, 32), torch.full((4,), 10)
    order = [2, 0, 3, 1]
    with torch.inference_mode():
        assert torch.equal(faster(x, t)[order], faster(x[order], t))
