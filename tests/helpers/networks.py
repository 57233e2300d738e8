# SPDX-License-Identifier: Apache-2.0
"""Small networks, untrained, with an output that depends on the contour."""

from __future__ import annotations

from typing import Any

import torch

from contourdiff.networks import ContourUNet

TINY_NETWORK = {
    "_target_": "contourdiff.networks.ContourUNet",
    "patch_size": 2,
    "channels": [32, 32],
    "attention_levels": [False, False],
    "num_res_blocks": 1,
    "num_head_channels": 32,
}

TINY_ARGUMENTS: dict[str, Any] = {
    key: value for key, value in TINY_NETWORK.items() if key != "_target_"
}
"""Arguments of the tiny network."""

GUIDED_NETWORK = {**TINY_NETWORK, "in_channels": 3}


def make_tiny_network() -> ContourUNet:
    """Untrained, but with an output that depends on the contour: the last layer is drawn, not zero."""
    network = ContourUNet(**TINY_ARGUMENTS)
    torch.nn.init.normal_(network.out[2].conv.weight, std=0.05)
    return network.eval()


def make_seeded() -> torch.nn.Module:
    torch.manual_seed(0)
    return make_tiny_network()


def make_attention_network() -> ContourUNet:
    torch.manual_seed(0)
    network = ContourUNet(
        patch_size=2,
        channels=[32, 32],
        attention_levels=[False, True],
        num_res_blocks=1,
        num_head_channels=16,
        use_flash_attention=True,
    )
    torch.nn.init.normal_(network.out[2].conv.weight, std=0.05)
    return network.eval()


def make_guided_network() -> ContourUNet:
    torch.manual_seed(0)
    network = ContourUNet(**TINY_ARGUMENTS, in_channels=3)
    torch.nn.init.normal_(network.out[2].conv.weight, std=0.05)
    return network.eval()
