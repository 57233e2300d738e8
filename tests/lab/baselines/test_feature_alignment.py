# SPDX-License-Identifier: Apache-2.0
"""CyCADA's second stage: losses of discriminator and network, and when the network learns."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from contourdiff_lab.baselines.feature_alignment import FeatureAlignment, ScoreDiscriminator

BATCH = {
    "ct": torch.rand(2, 1, 8, 8),
    "mr": torch.rand(2, 1, 8, 8) + 1,
    "ct_label": torch.ones(2, 1, 8, 8),
}


def logits(values: list[float]) -> Tensor:
    return torch.tensor(values).view(1, 1, 1, -1)


def cross_entropy(scores: Tensor, classes: Tensor) -> Tensor:
    return nn.functional.cross_entropy(scores, classes[:, 0].long())


def alignment(
    share: float = 1.0, rate: float = 0.0, **settings: float
) -> tuple[FeatureAlignment, SimpleNamespace]:
    """An alignment at this share of a training, and an engine with a network of two scores."""
    torch.manual_seed(0)
    discriminator, network = ScoreDiscriminator(2, channels=(8, 8), window=4), nn.Conv2d(1, 2, 1)
    budget = SimpleNamespace(share=lambda engine: share)
    engine = SimpleNamespace(
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        loss_function=cross_entropy,
        state=SimpleNamespace(device="cpu"),
    )
    optimizer = torch.optim.SGD(discriminator.parameters(), lr=rate)
    return FeatureAlignment(discriminator, optimizer, budget, **settings), engine  # type: ignore[arg-type]


def always(discriminator: ScoreDiscriminator, logit: float) -> None:
    """Let a discriminator return one logit, whatever it sees."""
    nn.init.zeros_(discriminator.layers[-1].weight)
    nn.init.constant_(discriminator.layers[-1].bias, logit)


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )


def assert_descended(network: nn.Module, start: nn.Module, loss: Tensor) -> None:
    """``network`` is one step of rate 0.1 from ``start`` down the gradient of ``loss``."""
    loss.backward()
    for parameter, other in zip(network.parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(parameter, other - 0.1 * other.grad)


def test_the_discriminators_loss_is_the_mean_cross_entropy() -> None:
    aligned, _ = alignment()
    loss = aligned.discriminator_loss(logits([2.0, -1.0]), logits([0.0, 3.0]))
    softplus = [math.log1p(math.exp(x)) for x in (-2.0, 1.0, 0.0, 3.0)]
    assert loss.item() == pytest.approx(sum(softplus) / 4, rel=1e-5)


def test_the_adversarial_loss_is_that_of_real_scores_taken_for_translated() -> None:
    aligned, _ = alignment()
    always(aligned.discriminator, -1.5)
    scores = torch.rand(2, 2, 4, 4)
    assert aligned.adversarial_loss(scores).item() == pytest.approx(
        math.log1p(math.exp(1.5)), rel=1e-5
    )
    assert all(parameter.requires_grad for parameter in aligned.discriminator.parameters())


def test_accuracy_is_the_mean_of_the_last_batches_and_part_of_the_weights() -> None:
    discriminator = ScoreDiscriminator(2, window=2)
    right = (logits([1.0, 1.0]), logits([-1.0, -1.0]))
    half = (logits([1.0, 1.0]), logits([1.0, 1.0]))
    assert [discriminator.record(*judged) for judged in (right, half, half)] == [1.0, 0.75, 0.5]
    resumed = ScoreDiscriminator(2, window=2)
    resumed.load_state_dict(discriminator.state_dict())
    assert resumed.record(*right) == 0.75


def test_before_its_start_the_network_learns_from_labels_alone() -> None:
    aligned, engine = alignment(share=0.3, rate=0.1, start=0.5)
    judge, start = copy.deepcopy(aligned.discriminator), copy.deepcopy(engine.network)
    output = aligned(engine, BATCH)
    assert_descended(engine.network, start, cross_entropy(start(BATCH["ct"]), BATCH["ct_label"]))
    assert same(aligned.discriminator, judge)
    assert output.keys() == {"loss", "segmentation"}


@pytest.mark.parametrize("logit", [-1.0, 1.0])
def test_the_network_waits_for_a_discriminator_that_guesses(logit: float) -> None:
    aligned, engine = alignment(min_accuracy=0.6)
    always(aligned.discriminator, logit)
    before = copy.deepcopy(engine.network)
    assert aligned(engine, BATCH)["accuracy"] == 0.5
    assert same(engine.network, before)


def test_the_network_takes_a_step_to_deceive_and_then_one_to_learn() -> None:
    """Two separate steps: the second gradient is that of the network after the first."""
    aligned, engine = alignment(min_accuracy=-1.0, weight=0.3)
    aligned.discriminator.layers[1].p = aligned.discriminator.layers[4].p = 0.0
    between = copy.deepcopy(engine.network)
    output = aligned(engine, BATCH)
    taken = 0.3 * nn.functional.softplus(-aligned.discriminator(between(BATCH["mr"]))).mean()
    taken.backward()
    with torch.no_grad():
        for parameter in between.parameters():
            parameter -= 0.1 * parameter.grad
    between.zero_grad()
    loss = cross_entropy(between(BATCH["ct"]), BATCH["ct_label"])
    assert output["loss"] == pytest.approx((loss + taken).item(), rel=1e-5)
    assert_descended(engine.network, between, loss)


def test_scores_of_real_slices_become_like_those_of_translated_ones() -> None:
    """A network that is off by a constant on real slices loses the offset, though it has no label of them."""

    class Offset(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.offset = nn.Parameter(torch.tensor(2.0))

        def forward(self, image: Tensor) -> Tensor:
            real = (image.mean() > 1).float()  # MR of the batch
            score = torch.sin(6 * image) + real * self.offset
            return torch.cat([score, -score], dim=1)

    aligned, engine = alignment(rate=0.5, weight=1.0, min_accuracy=0.55)
    engine.network = Offset()
    engine.optimizer = torch.optim.SGD(engine.network.parameters(), lr=0.1)
    for _ in range(150):
        aligned(engine, BATCH)
    assert abs(engine.network.offset.item()) < 0.5
