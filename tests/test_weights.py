# SPDX-License-Identifier: Apache-2.0
"""Weights of some contrasts start a training of more."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from contourdiff.networks import ContourUNet
from contourdiff.weights import start_weights
from helpers.networks import TINY_ARGUMENTS


def paint(network: ContourUNet, contrast: int) -> torch.Tensor:
    x = torch.linspace(-1, 1, 2 * 16 * 16).reshape(1, 2, 16, 16)
    with torch.no_grad():
        return network.eval()(x, torch.tensor([500]), class_labels=torch.tensor([contrast]))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Weights of T1 and T2, whose outputs differ."""
    torch.manual_seed(0)
    network = ContourUNet(contrasts=("t1", "t2"), **TINY_ARGUMENTS)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    return tmp_path / "model.pt"


@pytest.mark.parametrize(
    ("contrasts", "sources"),
    [(("t1", "t2", "t2_space"), (0, 1, 1)), (("flair", "t1", "t2"), (1, 0, 1))],
)
def test_a_new_contrast_begins_as_the_one_named(
    contrasts: tuple[str, ...], sources: tuple[int, ...], weights: Path
) -> None:
    """The contrasts that the weights know stay what they were, wherever the new one stands."""
    old = ContourUNet(contrasts=("t1", "t2"), **TINY_ARGUMENTS)
    old.load_state_dict(torch.load(weights, weights_only=True))
    assert not torch.equal(paint(old, 0), paint(old, 1))
    new_name = next(name for name in contrasts if name not in ("t1", "t2"))
    new = ContourUNet(contrasts=contrasts, **TINY_ARGUMENTS)
    start_weights(new, weights, "cpu", {new_name: "t2"})
    for label, source in enumerate(sources):
        assert torch.equal(paint(new, label), paint(old, source))


@pytest.mark.parametrize(
    ("contrasts", "new", "message"),
    [
        (("t1", "t2", "t2_space"), {"pd": "t2"}, "got pd: t2"),
        (("t1", "t2", "t2_space"), {"t2_space": "t3"}, "got t2_space: t3"),
        (("pd", "t1", "t2", "t2_space"), {"t2_space": "t2"}, "of the 3 contrasts.*weights of 2"),
        (("t1", "t2", "t2_space"), None, "1 of another shape"),
    ],
)
def test_other_contrasts_are_refused(
    contrasts: tuple[str, ...], new: dict[str, str] | None, message: str, weights: Path
) -> None:
    network = ContourUNet(contrasts=contrasts, **TINY_ARGUMENTS)
    with pytest.raises(ValueError, match=message):
        start_weights(network, weights, "cpu", new)
