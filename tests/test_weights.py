# SPDX-License-Identifier: Apache-2.0
"""Weights of some contrasts start a training of others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from contourdiff.networks import ContourUNet
from contourdiff.weights import start_weights
from helpers.networks import TINY_ARGUMENTS

INITIAL = ("t1", "t2")


def paint(network: ContourUNet, contrast: int) -> torch.Tensor:
    x = torch.linspace(-1, 1, 2 * 16 * 16).reshape(1, 2, 16, 16)
    with torch.no_grad():
        return network.eval()(x, torch.tensor([500]), class_labels=torch.tensor([contrast]))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Weights of T1 and T2, whose outputs differ."""
    torch.manual_seed(0)
    network = ContourUNet(contrasts=INITIAL, **TINY_ARGUMENTS)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    return tmp_path / "model.pt"


@pytest.mark.parametrize(
    ("contrasts", "new", "sources"),
    [
        (("t1", "t2", "t2_space"), {"t2_space": "t2"}, (0, 1, 1)),
        (("flair", "t1", "t2"), {"flair": "t2"}, (1, 0, 1)),
        (("t2",), {}, (1,)),
    ],
)
def test_a_contrast_begins_as_the_one_named(
    contrasts: tuple[str, ...], new: dict[str, str], sources: tuple[int, ...], weights: Path
) -> None:
    """The contrasts that the weights know stay what they were, wherever they stand."""
    old = ContourUNet(contrasts=INITIAL, **TINY_ARGUMENTS)
    old.load_state_dict(torch.load(weights, weights_only=True))
    assert not torch.equal(paint(old, 0), paint(old, 1))
    network = ContourUNet(contrasts=contrasts, **TINY_ARGUMENTS)
    start_weights(network, weights, "cpu", INITIAL, new)
    for label, source in enumerate(sources):
        assert torch.equal(paint(network, label), paint(old, source))


@pytest.mark.parametrize(
    ("initial", "new", "message"),
    [
        (INITIAL, {}, r"\['t2_space'\]; name in new_contrasts"),
        (INITIAL, {"t2_space": "t3"}, r"\['t3'\]; name in new_contrasts"),
        (("t1",), {"t2_space": "t1"}, "of the 1 contrasts.*weights of 2"),
        (None, {"t2_space": "t2"}, "1 of another shape"),
    ],
)
def test_other_contrasts_are_refused(
    initial: tuple[str, ...] | None, new: dict[str, str], message: str, weights: Path
) -> None:
    network = ContourUNet(contrasts=("t1", "t2", "t2_space"), **TINY_ARGUMENTS)
    with pytest.raises(ValueError, match=message):
        start_weights(network, weights, "cpu", initial, new)
